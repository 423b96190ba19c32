//go:build linux

package main

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// fakeWeChat answers over HTTPS, after the time that the code says, and writes its certificate
// where the others look for authorities. It tells at /connections and
// /requests how many of them it had.
func fakeWeChat() {
	var connections, requests atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/sns/jscode2session", func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		delay, _ := time.ParseDuration(r.URL.Query().Get("js_code"))
		time.Sleep(delay)
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, `{"session_key":"HyVFkGl5F5OQWJZZaNzBBg==","openid":"oGZUI0egBJY1zhBYw2KhdUfwVJJE",`+
			`"unionid":"o6_bmasdasdsad6_2sgVt7hMZOPfL"}`)
	})
	mux.HandleFunc("/connections", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, connections.Load()) })
	mux.HandleFunc("/requests", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, requests.Load()) })
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = listen()
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.StartTLS()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	check(os.WriteFile(os.Getenv("SSL_CERT_FILE"), pem.EncodeToMemory(block), 0o600))
	fmt.Fprintf(os.Stderr, "{\"addr\":%q}\n", server.Listener.Addr())
	select {}
}

// count asks a fake WeChat for its "connections" or "requests" until now.
func count(wechat *process, what string) (n float64) {
	resp, err := asker.Get("https://" + wechat.addr + "/" + what)
	check(err)
	defer resp.Body.Close()
	_, err = fmt.Fscan(resp.Body, &n)
	check(err)
	return n
}

// asker keeps its connection, so that counting makes no new ones.
var asker = http.Client{Transport: &http.Transport{TLSClientConfig: insecure}}

// leanLoop does the job with as little as net/http allows: no checks, no timeouts, no log.
func leanLoop() {
	base, err := url.Parse(os.Getenv("WX_BASE_URL") + "/sns/jscode2session")
	check(err)
	query := "appid=" + appID + "&secret=" + secret + "&grant_type=authorization_code&js_code="
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, TLSClientConfig: &tls.Config{}, DisableCompression: true}
	noHeader, contentType := http.Header{}, []string{"application/json"}
	buffers := sync.Pool{New: func() any { return new([4096]byte) }}
	serve(func(w http.ResponseWriter, r *http.Request) {
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
			http.Error(w, "", http.StatusBadGateway)
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
	})
}

// tutorial does what the tutorials show.
func tutorial() {
	serve(func(w http.ResponseWriter, r *http.Request) {
		var login struct {
			Code string `json:"code"`
		}
		json.NewDecoder(r.Body).Decode(&login)
		resp, err := http.Get(os.Getenv("WX_BASE_URL") + "/sns/jscode2session?appid=" + appID + "&secret=" + secret +
			"&js_code=" + login.Code + "&grant_type=authorization_code")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		var session map[string]any
		json.NewDecoder(resp.Body).Decode(&session)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"openid": session["openid"]})
	})
}

func serve(handler http.HandlerFunc) {
	listener := listen()
	fmt.Fprintf(os.Stderr, "{\"addr\":%q}\n", listener.Addr())
	check(http.Serve(listener, handler))
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", os.Getenv("ADDR"))
	check(err)
	return listener
}
