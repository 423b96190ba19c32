package main

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

// fakeWeChat answers over HTTPS, after the time that the code says.
func fakeWeChat() {
	server := http.Server{
		Addr:         os.Getenv("ADDR"),
		TLSNextProto: make(map[string]func(*http.Server, *tls.Conn, http.Handler)), // HTTP/1.1
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			delay, _ := time.ParseDuration(r.URL.Query().Get("js_code"))
			time.Sleep(delay)
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, `{"session_key":"HyVFkGl5F5OQWJZZaNzBBg==","openid":"oGZUI0egBJY1zhBYw2KhdUfwVJJE"}`)
		}),
	}
	pem := os.Getenv("SSL_CERT_FILE")
	check(server.ListenAndServeTLS(pem, pem))
}

// leanLoop does the service's job with as little as net/http allows: no checks, no limits, no log.
func leanLoop() {
	base, err := url.Parse(os.Getenv("WX_BASE_URL") + "/sns/jscode2session")
	check(err)
	query := "appid=" + os.Getenv("WX_APPID") + "&secret=" + os.Getenv("WX_APPSECRET") +
		"&grant_type=authorization_code&js_code="
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, DisableCompression: true}
	noHeader, contentType := http.Header{}, []string{"application/json"}
	buffers := sync.Pool{New: func() any { return new([4096]byte) }}
	check(http.ListenAndServe(os.Getenv("ADDR"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := buffers.Get().(*[4096]byte)
		defer buffers.Put(buf)
		var login struct {
			Code string `json:"code"`
		}
		n, _ := io.ReadFull(r.Body, buf[:])
		json.Unmarshal(buf[:n], &login)
		u := *base
		u.RawQuery = query + url.QueryEscape(login.Code)
		resp, err := transport.RoundTrip(&http.Request{Method: "GET", URL: &u, Host: u.Host, Header: noHeader})
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var user struct {
			OpenID string `json:"openid"`
		}
		n, _ = io.ReadFull(resp.Body, buf[:])
		resp.Body.Close()
		json.Unmarshal(buf[:n], &user)
		w.Header()["Content-Type"] = contentType
		w.Write(append(strconv.AppendQuote(append(buf[:0], `{"openid":`...), user.OpenID), '}'))
	})))
}
