package main

import (
	"cmp"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// wechatURLs are WeChat's general API domain and its disaster-recovery domain
// (developers.weixin.qq.com/doc/service/Basic_Information/Interface_field_description.html).
const wechatURLs = "https://api.weixin.qq.com,https://api2.weixin.qq.com"

// console is where an operator finds the AppID, the AppSecret and the IP allowlist.
const console = "mp.weixin.qq.com, 开发 → 开发管理 → 开发设置"

// certLook is the time between two looks at the files of the certificate.
const certLook = 5 * time.Second

// maxText bounds the texts that become part of a request to WeChat, in bytes.
const maxText = 160

// modes are what the flags ask for.
type modes struct{ sandbox, check, healthy, version bool }

func parseFlags(args []string, stderr io.Writer) (mode modes, err error) {
	flags := flag.NewFlagSet("wxopenid", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&mode.sandbox, "sandbox", false, "run against an embedded fake WeChat; no AppID or AppSecret needed")
	flags.BoolVar(&mode.check, "check", false, "ask WeChat whether it accepts the AppID and AppSecret, print the verdict, exit")
	flags.BoolVar(&mode.healthy, "healthy", false, "ask the service that runs here with the same settings whether it is up, exit 0 if so")
	flags.BoolVar(&mode.version, "version", false, "print module version, VCS revision and Go version, exit")
	err = flags.Parse(args)
	if err == nil && (flags.NArg() > 0 || mode.check && mode.sandbox) {
		err = errors.New("wxopenid takes flags alone, and of -check and -sandbox one: settings come from the environment")
		fmt.Fprintln(stderr, err)
	}
	return mode, err
}

// A config is the settings, checked. It holds the AppSecret: never log or print it.
type config struct {
	appID       string
	appSecret   string
	addr        string        // host:port to listen on
	baseURLs    []*url.URL    // where WeChat is, in the order to try
	timeout     time.Duration // for a whole exchange with WeChat
	maxInflight int           // exchanges with WeChat at one time
	tlsCert     string        // PEM file; empty for plain HTTP
	tlsKey      string        // PEM file; empty if and only if tlsCert is
	sandbox     bool          // ask a fake WeChat: baseURLs is empty
}

// scheme is what the service is asked over.
func (c config) scheme() string {
	if c.tlsCert != "" {
		return "https"
	}
	return "http"
}

// loadConfig reads the settings through getenv; an empty variable is an unset
// one. The error names every bad setting, a line each, and never a value: a
// secret may have been put into the wrong variable. With sandbox, credentials
// are optional and WX_BASE_URL is not looked at.
func loadConfig(getenv func(string) string, sandbox bool) (config, error) {
	s := settings{getenv: getenv}
	c := config{
		appID:       s.word("WX_APPID", getenv("WX_APPID")),
		appSecret:   s.appSecret(),
		addr:        s.addr(sandbox),
		timeout:     positive(&s, "WX_TIMEOUT", 5*time.Second, time.ParseDuration, "5s or 800ms"),
		maxInflight: positive(&s, "MAX_INFLIGHT", 1024, strconv.Atoi, "1024"),
		tlsCert:     getenv("TLS_CERT"),
		tlsKey:      getenv("TLS_KEY"),
		sandbox:     sandbox,
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		s.bad("TLS_CERT and TLS_KEY belong together: set both to serve HTTPS, or neither")
	}
	if sandbox {
		c.appID = cmp.Or(c.appID, "wxsandbox000000000")
		c.appSecret = cmp.Or(c.appSecret, rand.Text())
		return c, errors.Join(s.problems...)
	}
	c.baseURLs = s.baseURLs()
	if c.appID == "" {
		s.bad("WX_APPID is not set: give it the AppID of the mini program (" + console + ")")
	}
	if getenv("WX_APPSECRET")+getenv("WX_APPSECRET_FILE") == "" {
		s.bad("WX_APPSECRET is not set: give it the AppSecret, from the same page, or name a file that holds it in WX_APPSECRET_FILE")
		s.bad("Or try it with a fake WeChat, which needs neither: go run . -sandbox")
	}
	return c, errors.Join(s.problems...)
}

// settings reads variables one by one and collects what is wrong with them.
type settings struct {
	getenv   func(string) string
	problems []error
}

func (s *settings) bad(problem string) {
	s.problems = append(s.problems, errors.New(problem))
}

// word returns value, which has to be a word: the placeholder of a copied
// example, or a space pasted along, is none.
func (s *settings) word(name, value string) string {
	if !isWord(value) {
		s.bad(fmt.Sprintf("%s holds white space or characters other than ASCII, or is over %d bytes: copy it anew, with nothing around it", name, maxText))
	}
	return value
}

// isWord reports whether value is short printable ASCII without white space.
func isWord(value string) bool {
	return len(value) <= maxText && !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (s *settings) appSecret() string {
	value, file := s.getenv("WX_APPSECRET"), s.getenv("WX_APPSECRET_FILE")
	switch {
	case value != "" && file != "":
		s.bad("WX_APPSECRET and WX_APPSECRET_FILE are both set: remove one of them")
		return ""
	case file == "":
		return s.word("WX_APPSECRET", value)
	}
	content, err := os.ReadFile(file)
	secret := strings.TrimSpace(string(content))
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		s.bad("WX_APPSECRET_FILE cannot be read (" + pathErr.Err.Error() + "): name a file that holds the AppSecret and that this user may read")
	} else if secret == "" {
		s.bad("WX_APPSECRET_FILE names an empty file: put the AppSecret in it")
	}
	return s.word("WX_APPSECRET_FILE", secret)
}

func (s *settings) addr(sandbox bool) string {
	value := s.getenv("ADDR")
	switch {
	case value == "" && sandbox:
		return "127.0.0.1:2020"
	case value == "":
		return ":2020"
	}
	_, port, err := net.SplitHostPort(value)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || !isWord(value) {
		s.bad("ADDR is no address to listen on: write host:port or :port, as in 127.0.0.1:2020 or :2020")
	}
	return value
}

// positive returns what parse makes of a variable, which has to be above zero.
func positive[T int | time.Duration](s *settings, name string, unset T, parse func(string) (T, error), example string) T {
	value := s.getenv(name)
	if value == "" {
		return unset
	}
	n, err := parse(value)
	if err != nil || n <= 0 {
		s.bad(name + " is not above zero, or cannot be read: write it as in " + example)
	}
	return n
}

func (s *settings) baseURLs() []*url.URL {
	value := s.getenv("WX_BASE_URL")
	if value == "" {
		value = wechatURLs
	}
	var urls []*url.URL
	for part := range strings.SplitSeq(value, ",") {
		u, err := url.Parse(part)
		if err != nil || !isWord(part) || !isBaseURL(u) {
			s.bad("WX_BASE_URL is not a list of addresses: write https://host or https://host/prefix, with a comma and no space between two")
			return nil
		}
		urls = append(urls, u)
	}
	return urls
}

// isBaseURL reports whether u is a scheme that WeChat can be asked over, a host
// and perhaps a path, and nothing else.
func isBaseURL(u *url.URL) bool {
	rest := *u
	rest.Scheme, rest.Host, rest.Path, rest.RawPath = "", "", "", ""
	return (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && rest == url.URL{}
}

// isPlain reports whether the AppSecret would travel to u unencrypted.
func isPlain(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && u.Hostname() != "localhost" && !ip.IsLoopback()
}

// A certificate is read from its files again as it is used, so that a renewed one
// needs no restart.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	checked time.Time
	pair    *tls.Certificate // nil before the first look
	bad     bool             // what the files now hold is of no use
}

// get returns the certificate for a handshake: the old one while the files hold
// none. It fails if there was none ever.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < certLook {
		return c.pair, nil
	}
	c.checked = time.Now()
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	switch {
	case err == nil:
		c.pair = &pair
	case c.pair == nil:
		return nil, err
	case !c.bad:
		c.log.Error("TLS_CERT and TLS_KEY hold no certificate any more: the old one stays in use", "cause", err.Error())
	}
	c.bad = err != nil
	return c.pair, nil
}
