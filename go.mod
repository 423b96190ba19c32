module wxopenid

go 1.26
