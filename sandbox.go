package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	mockCode = "the code is a mock one" // of WeChat's developer tools in tourist mode
	maxDelay = 10 * time.Minute
	maxUsed  = 10_000 // codes
)

// A sandbox is a fake WeChat with one mini program. Its codes work once, but for
// mockCode and those that begin with "sandbox:" and ask for what follows as in a
// query: user, unionid=1, errcode, status, delay.
type sandbox struct {
	appID, appSecret string

	mu          sync.Mutex
	used, older map[[sha256.Size]byte]bool // the last maxUsed codes and up to as many before
}

// curlLine is a command that gets an openid from the sandbox at addr.
func curlLine(scheme string, addr net.Addr) string {
	host, port, _ := net.SplitHostPort(addr.String())
	if net.ParseIP(host).IsUnspecified() {
		host = "localhost"
	}
	curl := map[string]string{"http": "curl", "https": "curl -k"}[scheme]
	return fmt.Sprintf(`%s -d '{"code":"%s"}' %s://%s/openid`, curl, mockCode, scheme, net.JoinHostPort(host, port))
}

// startSandbox serves a fake WeChat on a loopback port of its own, where neither a
// certificate nor a proxy stands between, until stop is called, and has c ask it.
func startSandbox(c *config) (fake http.Handler, stop func() error, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	fake = &sandbox{appID: c.appID, appSecret: c.appSecret}
	server := &http.Server{Handler: fake, ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	c.baseURLs = []*url.URL{{Scheme: "http", Host: listener.Addr().String()}}
	return fake, server.Close, nil
}

// ServeHTTP answers as jscode2session does: 200 and text/plain for errors too
// (developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session).
func (s *sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	wanted := s.judge(r.URL.Query())
	conn := http.NewResponseController(w)
	conn.SetReadDeadline(time.Time{}) // a delay may be longer than the service's timeouts
	conn.SetWriteDeadline(time.Time{})
	select {
	case <-time.After(wanted.delay):
	case <-r.Context().Done():
		panic(http.ErrAbortHandler) // else net/http answers 200 to a half-closed caller
	}
	if wanted.status != 0 {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(wanted.status)
		fmt.Fprintf(w, "<html><body><h1>%d %s</h1></body></html>\n", wanted.status, http.StatusText(wanted.status))
		return
	}
	user := cmp.Or(wanted.user, "sandbox")
	reply := map[string]any{"openid": fakeID("openid", user), "session_key": fakeID("session_key", user)}
	if wanted.unionID {
		reply["unionid"] = fakeID("unionid", user)
	}
	if wanted.errcode != 0 {
		rid := fmt.Sprintf("%08x-%08x-%08x", time.Now().Unix(), rand.Uint32(), rand.Uint32())
		reply = map[string]any{"errcode": wanted.errcode, "errmsg": "refused by the sandbox, rid: " + rid}
	}
	w.Header().Set("Content-Type", "text/plain")
	json.NewEncoder(w).Encode(reply)
}

// A wish is what a request gets. The zero wish is the openid of the one user.
type wish struct {
	user    string
	unionID bool
	errcode int64
	status  int
	delay   time.Duration
}

// judge looks at a request as WeChat does: at what is missing, then at the AppID
// and the AppSecret, at the code last.
func (s *sandbox) judge(q url.Values) wish {
	code := q.Get("js_code")
	asked, asking := strings.CutPrefix(code, "sandbox:")
	switch {
	case q.Get("appid") == "":
		return wish{errcode: 41002}
	case q.Get("secret") == "":
		return wish{errcode: 41004}
	case code == "":
		return wish{errcode: 41008}
	case q.Get("appid") != s.appID:
		return wish{errcode: 40013}
	case q.Get("secret") != s.appSecret:
		return wish{errcode: 40125}
	case q.Get("grant_type") != "authorization_code":
		return wish{errcode: 40002}
	case asking:
		return parseWish(asked)
	case code != mockCode && s.use(code):
		return wish{errcode: 40163}
	}
	return wish{}
}

// parseWish reads what a code asks for; where nothing of it is known and
// possible, that is 40029.
func parseWish(asked string) wish {
	q, _ := url.ParseQuery(asked)
	w := wish{user: q.Get("user"), unionID: q.Get("unionid") == "1"}
	w.errcode, _ = strconv.ParseInt(q.Get("errcode"), 10, 64)
	if status, _ := strconv.Atoi(q.Get("status")); status >= 200 && status <= 599 {
		w.status = status
	}
	delay, _ := time.ParseDuration(q.Get("delay"))
	w.delay = max(0, min(delay, maxDelay))
	if w == (wish{}) {
		w.errcode = 40029
	}
	return w
}

// use marks code as used and reports whether it was before.
func (s *sandbox) use(code string) bool {
	hash := sha256.Sum256([]byte(code))
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.used[hash] || s.older[hash]
	if s.used == nil || len(s.used) == maxUsed {
		s.used, s.older = make(map[[sha256.Size]byte]bool), s.used
	}
	s.used[hash] = true
	return before
}

// fakeID returns user's id of that kind: stable, 28 characters, o first.
func fakeID(kind, user string) string {
	hash := sha256.Sum256([]byte(kind + ":" + user))
	return "o" + base64.RawURLEncoding.EncodeToString(hash[:])[:27]
}
