package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
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
	maxDelay = 10 * time.Minute
	maxUsed  = 10_000 // codes
)

// A sandbox is a fake WeChat. A code works once, except for mockCode and for codes that begin with
// "sandbox:" and say, written as a query string, what is to happen.
type sandbox struct {
	appSecrets map[string]string // by AppID
	log        *slog.Logger

	mu   sync.Mutex
	used map[[sha256.Size]byte]bool // hashes of codes, maxUsed at most
}

func newSandbox(c config, log *slog.Logger) *sandbox {
	s := &sandbox{appSecrets: make(map[string]string), log: log, used: make(map[[sha256.Size]byte]bool)}
	for i, appID := range c.appIDs {
		s.appSecrets[appID] = c.appSecrets[i]
	}
	return s
}

// startSandbox starts the fake WeChat on a loopback port of its own, out of reach of certificates
// and proxies, and returns its base URL.
func startSandbox(c config, log *slog.Logger) (*http.Server, *url.URL, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: newSandbox(c, log), ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	return server, &url.URL{Scheme: "http", Host: listener.Addr().String()}, nil
}

// ServeHTTP answers as jscode2session does: 200 and text/plain, also for errors
// (developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session).
func (s *sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	o := s.outcomeOf(q)
	http.NewResponseController(w).SetWriteDeadline(time.Time{}) // a delay may be longer than it
	select {
	case <-time.After(o.delay):
	case <-r.Context().Done():
		return
	}
	if o.status != 0 {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(o.status)
		fmt.Fprintf(w, "<html><body><h1>%d %s</h1></body></html>\n", o.status, http.StatusText(o.status))
		return
	}
	user := cmp.Or(o.user, "sandbox")
	openID, key := fakeID("openid", q.Get("appid"), user), fakeID("session_key", user)
	reply := map[string]any{"openid": openID, "session_key": key}
	if o.unionID {
		reply["unionid"] = fakeID("unionid", user) // the same for each AppID
	}
	if o.errcode != 0 {
		rid := fmt.Sprintf("%08x-%08x-%08x", time.Now().Unix(), rand.Uint32(), rand.Uint32())
		reply = map[string]any{"errcode": o.errcode, "errmsg": "refused by the sandbox, rid: " + rid}
	}
	w.Header().Set("Content-Type", "text/plain")
	json.NewEncoder(w).Encode(reply)
}

// An outcome is what a request to the sandbox ends in. The zero outcome is the openid of the one user.
type outcome struct {
	user    string
	unionID bool
	errcode int64
	status  int
	delay   time.Duration
}

// outcomeOf checks a request as WeChat does: what is missing, then the AppID and the AppSecret, then the code.
func (s *sandbox) outcomeOf(q url.Values) outcome {
	appSecret, known := s.appSecrets[q.Get("appid")]
	code := q.Get("js_code")
	asked, asks := strings.CutPrefix(code, "sandbox:")
	switch {
	case q.Get("appid") == "":
		return outcome{errcode: 41002}
	case q.Get("secret") == "":
		return outcome{errcode: 41004}
	case code == "":
		return outcome{errcode: 41008}
	case !known:
		return outcome{errcode: 40013}
	case q.Get("secret") != appSecret:
		return outcome{errcode: 40125}
	case q.Get("grant_type") != "authorization_code":
		return outcome{errcode: 40002}
	case asks:
		return s.parse(asked)
	case code != mockCode && s.use(code):
		return outcome{errcode: 40163}
	}
	return outcome{}
}

// parse reads what a code asks for. It is refused where that holds nothing known.
func (s *sandbox) parse(asked string) outcome {
	q, _ := url.ParseQuery(asked)
	o := outcome{user: q.Get("user"), unionID: q.Get("unionid") == "1"}
	o.errcode, _ = strconv.ParseInt(q.Get("errcode"), 10, 64)
	if status, _ := strconv.Atoi(q.Get("status")); status >= 200 && status <= 599 {
		o.status = status
	}
	delay, _ := time.ParseDuration(q.Get("delay"))
	o.delay = max(0, min(delay, maxDelay))
	if o == (outcome{}) {
		s.log.Warn("the sandbox does not know what a code asks for: after sandbox: write user=NAME, unionid=1, " +
			"errcode=NUMBER, delay=TIME (3s) or status=NUMBER (200 to 599), with & between two")
		o.errcode = 40029
	}
	return o
}

// use marks code as used, and reports whether it was before. Of too many codes it forgets any one.
func (s *sandbox) use(code string) bool {
	hash := sha256.Sum256([]byte(code))
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.used[hash]
	if !before && len(s.used) == maxUsed {
		for any := range s.used {
			delete(s.used, any)
			break
		}
	}
	s.used[hash] = true
	return before
}

// fakeID returns an id of a user: stable, 28 characters, o first.
func fakeID(parts ...string) string {
	hash := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "o" + base64.RawURLEncoding.EncodeToString(hash[:])[:27]
}
