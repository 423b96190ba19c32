// A back end for mini program login. Go 1.24 or later, without modules: go run backend.go
package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

var wxopenid, port = cmp.Or(os.Getenv("WXOPENID_URL"), "http://127.0.0.1:2020"), cmp.Or(os.Getenv("PORT"), "3000")
var noRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
var client = http.Client{Timeout: 8 * time.Second, Transport: &http.Transport{}, CheckRedirect: noRedirect}

// askWxopenid returns the status and the JSON object to answer with. Below 400 the object has the openid.
// It waits for 8 s, between WX_TIMEOUT (5 s) and what openid.js waits (10 s). An empty Transport uses no proxy.
func askWxopenid(code string, header http.Header) (status int, answer map[string]any) {
	id := cmp.Or(header.Get("X-Request-Id"), rand.Text())
	body, _ := json.Marshal(map[string]string{"code": code})
	request, err := http.NewRequest("POST", wxopenid+"/openid", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err) // WXOPENID_URL is not a URL
	}
	request.Header = http.Header{"Content-Type": {"application/json"}, "Referer": header["Referer"], "X-Request-Id": {id}}
	reply, err := client.Do(request)
	if err == nil {
		defer reply.Body.Close()
		body, err = io.ReadAll(reply.Body)
		status, err = reply.StatusCode, cmp.Or(err, json.Unmarshal(body, &answer))
	}
	if openid, _ := answer["openid"].(string); err != nil || answer == nil || status < 400 && openid == "" {
		log.Printf("%s wxopenid gave no usable answer: status %d, error %v", id, status, err)
		status, answer = 502, map[string]any{"error": "wxopenid_unreachable"}
	}
	log.Println(id, status, cmp.Or(answer["error"], any(http.StatusText(status))))
	return status, answer
}

func main() {
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var sent struct{ Code string }
		body, err := io.ReadAll(io.LimitReader(r.Body, 65536))
		io.Copy(io.Discard, r.Body) // reads on, but keeps no more
		status, answer := 400, map[string]any{"error": "invalid_request"}
		if err == nil && json.Unmarshal(body, &sent) == nil && sent.Code != "" {
			status, answer = askWxopenid(sent.Code, r.Header)
		}
		if status < 400 {
			answer = map[string]any{"token": rand.Text()} // store in your database whose it is: answer["openid"]'s
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(answer)
	})))
}
