module wxopenid

go 1.26.0
