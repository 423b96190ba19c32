package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// WeChat's general API domain and its disaster-recovery domain
	// (developers.weixin.qq.com/doc/service/Basic_Information/Interface_field_description.html).
	wechatURLs = "https://api.weixin.qq.com,https://api2.weixin.qq.com"
	wechatPath = "/sns/jscode2session"
	mockCode   = "the code is a mock one" // of the developer tools in tourist mode

	console   = "mp.weixin.qq.com, 开发管理 → 开发设置" // AppID, AppSecret, IP allowlist
	apiRights = "mp.weixin.qq.com, 开发管理 → 接口设置" // rights and quotas
)

// A config is the settings, checked. It holds the AppSecret: never log or print it.
type config struct {
	appID       string
	appSecret   string
	addr        string        // host:port to listen on
	baseURLs    []*url.URL    // of WeChat's API, in the order to try
	timeout     time.Duration // of one exchange with WeChat
	maxInflight int           // exchanges with WeChat at a time
	maxConns    int           // connections from callers at a time
	tlsCert     string        // PEM file; empty for plain HTTP
	tlsKey      string        // PEM file; empty if and only if tlsCert is
	sandbox     bool          // ask a fake WeChat: baseURLs is empty
	warnings    []string      // about odd settings, without their values
}

// loadConfig reads the settings. The error has a line for each bad one, with the cause and what to
// do, and never a value: a secret may be in the wrong variable. A sandbox needs no credentials.
func loadConfig(getenv func(string) string, sandbox bool) (config, error) {
	s := settings{getenv: getenv}
	c := config{
		appID:       s.word("WX_APPID"),
		appSecret:   s.appSecret(),
		addr:        s.addr(sandbox),
		timeout:     s.timeout(),
		maxInflight: s.count("MAX_INFLIGHT", 1024),
		maxConns:    s.count("MAX_CONNS", 10_000),
		tlsCert:     s.path("TLS_CERT"),
		tlsKey:      s.path("TLS_KEY"),
		sandbox:     sandbox,
	}
	if c.tlsCert != "" && getenv("TLS_KEY") == "" || c.tlsKey != "" && getenv("TLS_CERT") == "" {
		s.bad("TLS_CERT", "and TLS_KEY belong together: set both to serve HTTPS, or neither")
	}
	if sandbox {
		c.appID = cmp.Or(c.appID, "wx0000000000000000")
		c.appSecret = cmp.Or(c.appSecret, rand.Text())
	} else {
		c.baseURLs = s.baseURLs()
		s.checkCredentials()
		s.checkProxies(c.baseURLs)
	}
	if c.appID != "" && !regexp.MustCompile(`^wx[0-9a-f]{16}$`).MatchString(c.appID) {
		s.warn("WX_APPID does not look like an AppID (wx and 16 of 0-9a-f): copy it again from " + console)
	}
	if c.appSecret != "" && !sandbox && !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(c.appSecret) {
		s.warn("the AppSecret does not look like one (32 of 0-9a-f): copy it again, or reset it at " + console)
	}
	c.warnings = s.warnings
	return c, errors.Join(s.problems...)
}

// settings reads variables one by one and collects what is wrong with them.
type settings struct {
	getenv   func(string) string
	problems []error
	warnings []string
}

func (s *settings) bad(name, problem string) {
	s.problems = append(s.problems, errors.New(name+" "+problem))
}

func (s *settings) warn(text string) { s.warnings = append(s.warnings, text) }

// word returns a setting that has to be ASCII without white space.
func (s *settings) word(name string) string {
	value := s.getenv(name)
	if problem := flaw(value); problem != "" {
		s.bad(name, problem)
		return ""
	}
	return value
}

// path returns a setting that may hold white space and Chinese.
func (s *settings) path(name string) string {
	value := s.getenv(name)
	if windowsEnd.MatchString(value) || inQuotes.MatchString(value) {
		return s.word(name)
	}
	return value
}

var windowsEnd = regexp.MustCompile("\r\n*$")
var inQuotes = regexp.MustCompile("(?s)^[\"'`“”‘’].*[\"'`“”‘’]$")

// flaw says what keeps value from being ASCII without white space, or nothing.
func flaw(value string) string {
	switch {
	case windowsEnd.MatchString(value):
		return "ends in a Windows line end (CR): save the file that it comes from with LF line ends"
	case inQuotes.MatchString(value):
		return "has quotes around it: remove them"
	case strings.ContainsFunc(value, unicode.IsSpace):
		return "holds white space, a space or a line break: remove it"
	case strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII || unicode.IsControl(r) }):
		return "is not plain ASCII text: replace a placeholder by the real value, and full-width punctuation " +
			"(：，) by : and ,"
	}
	return ""
}

func (s *settings) checkCredentials() {
	const sandbox = ", or try it with -sandbox, which needs neither AppID nor AppSecret"
	if s.getenv("WX_APPID") == "" {
		s.bad("WX_APPID", "is not set: set it to the mini program's AppID ("+console+")"+sandbox)
	}
	if s.getenv("WX_APPSECRET") == "" && s.getenv("WX_APPSECRET_FILE") == "" {
		s.bad("WX_APPSECRET", "is not set: set it, or WX_APPSECRET_FILE to a file that holds it"+sandbox)
	}
}

func (s *settings) appSecret() string {
	file := s.path("WX_APPSECRET_FILE")
	switch {
	case file == "":
		return s.word("WX_APPSECRET")
	case s.getenv("WX_APPSECRET") != "":
		s.bad("WX_APPSECRET", "and WX_APPSECRET_FILE are both set: remove one of them")
		return ""
	}
	content, err := os.ReadFile(file)
	if err != nil {
		if pathErr, ok := errors.AsType[*os.PathError](err); ok {
			err = pathErr.Err // without the path, which may be a secret in the wrong variable
		}
		s.bad("WX_APPSECRET_FILE", fmt.Sprintf("cannot be read (%v): name a file that this user may read", err))
	} else if problem := secretFlaw(string(content)); problem != "" {
		s.bad("WX_APPSECRET_FILE", "names a file "+problem)
	}
	return strings.TrimSpace(string(content))
}

// secretFlaw says why a file with this content holds no AppSecret, or nothing.
func secretFlaw(content string) string {
	secret := strings.TrimSpace(content)
	switch {
	case strings.HasPrefix(content, "\xef\xbb\xbf"):
		return "that begins with a byte order mark (BOM): save it as UTF-8 without BOM"
	case strings.HasPrefix(content, "\xff\xfe") || strings.HasPrefix(content, "\xfe\xff"),
		strings.Contains(content, "\x00"):
		return "in UTF-16: save it as UTF-8 without BOM"
	case secret == "":
		return "that is empty: put the AppSecret into it"
	case strings.Contains(secret, "WX_APPSECRET"):
		return "with more than the AppSecret: the file has to hold the AppSecret alone, without WX_APPSECRET="
	case flaw(secret) != "":
		return "whose content " + flaw(secret)
	}
	return ""
}

func (s *settings) addr(sandbox bool) string {
	unset := ":2020"
	if sandbox {
		unset = "127.0.0.1:2020"
	}
	value := cmp.Or(s.word("ADDR"), unset)
	_, port, err := net.SplitHostPort(value)
	_, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case errors.Is(portErr, strconv.ErrRange):
		s.bad("ADDR", "has a port that does not exist: the port has to be 0 to 65535")
	case err != nil || portErr != nil:
		s.bad("ADDR", "is not a listen address: write host:port or :port, as in 127.0.0.1:2020 or :2020")
	}
	return value
}

func (s *settings) timeout() time.Duration {
	value := cmp.Or(s.word("WX_TIMEOUT"), "5s")
	d, err := time.ParseDuration(value)
	switch _, noUnit := strconv.ParseFloat(value, 64); {
	case err != nil && noUnit == nil:
		s.bad("WX_TIMEOUT", "has no unit: write 5s or 800ms")
	case err != nil && strings.Contains(err.Error(), "unknown unit"):
		s.bad("WX_TIMEOUT", "has an unknown unit: write 5s or 800ms")
	case err != nil:
		s.bad("WX_TIMEOUT", "is not a time: write 5s or 800ms")
	case d <= 0:
		s.bad("WX_TIMEOUT", "is not above zero: write 5s or 800ms")
	}
	return d
}

func (s *settings) count(name string, unset int) int {
	value := cmp.Or(s.word(name), strconv.Itoa(unset))
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		s.bad(name, "is not a whole number above zero: write digits only, as in "+strconv.Itoa(unset))
	}
	return n
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// setName returns name, or name in lower case where that one is set, as variables of proxies may be.
func setName(getenv func(string) string, name string) string {
	if lower := strings.ToLower(name); getenv(name) == "" && getenv(lower) != "" {
		return lower
	}
	return name
}

// checkProxies looks at the proxy variables that base URLs use: net/http drops a bad value without a word.
func (s *settings) checkProxies(bases []*url.URL) {
	set := func(name string) bool { return s.getenv(setName(s.getenv, name)) != "" }
	if set("ALL_PROXY") && !set("HTTPS_PROXY") && !set("NO_PROXY") {
		s.warn("ALL_PROXY is not used here, unlike in curl: set HTTPS_PROXY to ask WeChat through the proxy")
	}
	var names []string
	for _, u := range bases {
		name := setName(s.getenv, strings.ToUpper(u.Scheme)+"_PROXY")
		if isLoopback(u.Hostname()) || s.noProxy(u) || slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		if value := s.word(name); value != "" && !isProxy(value) {
			s.bad(name, "is not the URL of a proxy: write http://host:port or socks5://host:port, and %25 for % in a "+
				"password")
		}
	}
}

func isLoopback(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }

// noProxy reports whether NO_PROXY names the host of u: itself, or with the domains above it. (Ranges of addresses,
// which net/http knows as well, are not looked at.)
func (s *settings) noProxy(u *url.URL) bool {
	for item := range strings.SplitSeq(strings.ToLower(s.getenv(setName(s.getenv, "NO_PROXY"))), ",") {
		domain, port, _ := strings.Cut(strings.TrimSpace(item), ":")
		above := "." + strings.TrimPrefix(strings.TrimPrefix(domain, "*"), ".")
		names := domain == u.Hostname() || above != "." && strings.HasSuffix(u.Hostname(), above)
		if domain == "*" || names && (port == "" || port == cmp.Or(u.Port(), defaultPorts[u.Scheme])) {
			return true
		}
	}
	return false
}

// isProxy reports whether net/http can use value. It takes one without a scheme for http.
func isProxy(value string) bool {
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" {
		u, err = url.Parse("http://" + value)
	}
	if err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") {
		return false
	}
	_, err = strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	return err == nil && slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme)
}

func (s *settings) baseURLs() (urls []*url.URL) {
	for part := range strings.SplitSeq(cmp.Or(s.word("WX_BASE_URL"), wechatURLs), ",") {
		u, err := url.Parse(part)
		if strings.Contains(part, wechatPath) {
			s.bad("WX_BASE_URL", "holds the path of the API: leave "+wechatPath+" out, since wxopenid adds it")
			return nil
		}
		if err != nil || !isBaseURL(*u) {
			s.bad("WX_BASE_URL", "is not a list of base URLs: write https://host or https://host/prefix, with commas")
			return nil
		}
		if u.Scheme == "http" && !isLoopback(u.Hostname()) {
			s.warn("WX_BASE_URL: the AppSecret travels unencrypted to " + u.Host + ": write https")
		}
		urls = append(urls, u)
	}
	return urls
}

// isBaseURL reports whether u is http or https, a host and perhaps a path, and nothing else.
func isBaseURL(u url.URL) bool {
	scheme, host := u.Scheme, u.Hostname()
	u.Scheme, u.Host, u.Path, u.RawPath = "", "", "", ""
	return (scheme == "https" || scheme == "http") && host != "" && u == url.URL{}
}

// settingsHelp is what -h prints about the settings.
const settingsHelp = `Settings are environment variables. An empty one counts as not set.
  WX_APPID           the mini program's AppID (required)
  WX_APPSECRET       its AppSecret (required, or the next)
  WX_APPSECRET_FILE  a file that holds the AppSecret alone
  ADDR               listen address (default :2020, with -sandbox 127.0.0.1:2020)
  WX_BASE_URL        base URL of WeChat's API; after a comma, fallbacks
                     (default ` + wechatURLs + `)
  WX_TIMEOUT         time limit of one exchange with WeChat (default 5s)
  MAX_INFLIGHT       most exchanges with WeChat at a time; one more is refused (default 1024)
  MAX_CONNS          most connections from callers at a time; more wait (default 10000)
  TLS_CERT, TLS_KEY  PEM files, to serve HTTPS: both or neither
HTTPS_PROXY, HTTP_PROXY and NO_PROXY count for requests to WeChat, ALL_PROXY does not.
`
