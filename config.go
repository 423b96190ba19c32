package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
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

	console = "mp.weixin.qq.com, 开发管理" // AppID, AppSecret, IP allowlist, rights and quotas
	dotEnv  = ".env"
)

// settingNames are the names that count in the file .env, in the order of settingsHelp.
var settingNames = []string{"WX_APPID", "WX_APPSECRET", "WX_APPSECRET_FILE", "ADDR", "WX_BASE_URL", "WX_TIMEOUT",
	"MAX_INFLIGHT", "MAX_CONNS", "TLS_CERT", "TLS_KEY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}

// settingsHelp is what -h prints about the settings.
const settingsHelp = `Settings are environment variables. Without WX_APPID there, the file .env is read:
lines of NAME=value. An empty setting counts as not set.
  WX_APPID           the mini program's AppID (required); several with commas
  WX_APPSECRET       its AppSecret (required, or the next); several with commas
  WX_APPSECRET_FILE  a file that holds the AppSecret; several with commas, or one a line
  ADDR               listen address (default :2020, with -sandbox 127.0.0.1:2020)
  WX_BASE_URL        base URL of WeChat's API; after a comma, fallbacks
                     (default ` + wechatURLs + `)
  WX_TIMEOUT         time limit of one exchange with WeChat (default 5s)
  MAX_INFLIGHT       limit of logins under way; one more is refused (default 1024)
  MAX_CONNS          limit of open connections, all callers together; more wait (default 10000)
  TLS_CERT, TLS_KEY  PEM files, to serve HTTPS: both or neither
HTTPS_PROXY, HTTP_PROXY and NO_PROXY are used for requests to WeChat; ALL_PROXY is not.
`

// A config is the settings, checked. It holds the AppSecrets: never log or print it.
type config struct {
	appIDs      []string      // one or more
	appSecrets  []string      // the AppSecret of each AppID
	addr        string        // host:port to listen on
	baseURLs    []*url.URL    // of WeChat's API, in the order to try
	timeout     time.Duration // of one exchange with WeChat
	maxInflight int           // logins under way
	maxConns    int           // connections from callers at a time
	tlsCert     string        // PEM file; empty for plain HTTP
	tlsKey      string        // PEM file; empty if and only if tlsCert is
	sandbox     bool          // ask a fake WeChat: baseURLs is empty
	fromFile    []string      // names of the settings that come from .env
	warnings    []string      // about odd settings, without their values
}

// loadConfig reads the settings. The error has a line for each bad one, with the cause and what to
// do, and never a value: a secret may be in the wrong variable. A sandbox needs no credentials.
func loadConfig(getenv func(string) string, sandbox bool) (config, error) {
	s := newSettings(getenv)
	c := config{
		appIDs:      s.appIDs(sandbox),
		addr:        s.addr(sandbox),
		timeout:     s.timeout(),
		maxInflight: s.count("MAX_INFLIGHT", 1024),
		maxConns:    s.count("MAX_CONNS", 10_000),
		tlsCert:     s.value("TLS_CERT"),
		tlsKey:      s.value("TLS_KEY"),
		sandbox:     sandbox,
		fromFile:    s.fromFile,
	}
	c.appSecrets = s.appSecrets(sandbox, c.appIDs)
	if (s.get("TLS_CERT") == "") != (s.get("TLS_KEY") == "") {
		s.bad("TLS_CERT", "and TLS_KEY belong together: set both to serve HTTPS, or neither")
	}
	if !sandbox {
		c.baseURLs = s.baseURLs()
		s.checkRoutes(c.baseURLs)
	}
	c.warnings = s.warnings
	if len(s.problems) > 0 {
		return config{}, errors.New(strings.Join(slices.Sorted(maps.Values(s.problems)), "\n"))
	}
	return c, nil
}

// settings reads settings one by one and collects what is wrong with them.
type settings struct {
	get      func(name string) string // a setting as it is written: the environment's, or else that of .env
	fromFile []string                 // names of the settings that come from .env, in order
	renamed  bool                     // there is no .env, but .env.txt
	problems map[string]string        // by the name of a bad setting: the name, the cause, then what to do
	warnings []string
}

// bad notes a problem, the first of each setting.
func (s *settings) bad(name, text string) {
	s.problems[name] = cmp.Or(s.problems[name], name+" "+text)
}

// newSettings returns the settings of the environment and, where that has no WX_APPID, of the file .env.
func newSettings(getenv func(string) string) *settings {
	s := &settings{get: getenv, problems: make(map[string]string)}
	if getenv("WX_APPID") != "" {
		return s
	}
	content, err := os.ReadFile(dotEnv)
	switch {
	case errors.Is(err, os.ErrNotExist):
		_, err := os.Stat(dotEnv + ".txt")
		s.renamed = err == nil
	case err != nil:
		s.bad(dotEnv, fmt.Sprintf("cannot be read (%v): let this user read it, or move it away", errors.Unwrap(err)))
	case strings.Contains(string(content), "\x00"):
		s.bad(dotEnv, "is in UTF-16: save it as UTF-8")
	default:
		s.readFile(string(content))
	}
	return s
}

// fileLine finds NAME, =, and the value: between quotes, if there is nothing but a comment behind them, or as it is.
var fileLine = regexp.MustCompile(`^(?i:(?:export|set)[ \t]+)?([\w.-]+)[ \t]*(=?)` +
	`(?:[ \t]*"(.*?)"|[ \t]*'(.*?)'|(.*?))(?:[ \t]+#.*)?$`)

// readFile takes the settings from the lines of .env. Other names belong to other programs.
func (s *settings) readFile(content string) {
	getenv, file := s.get, make(map[string]string)
	s.get = func(name string) string { return cmp.Or(getenv(name), file[name]) }
	for i, line := range strings.Split(strings.ReplaceAll(content, "\ufeff", ""), "\n") {
		m := fileLine.FindStringSubmatch(strings.Trim(line, " \t\r"))
		if m == nil {
			continue
		}
		name := m[1]
		if upper := strings.ToUpper(name); strings.HasSuffix(upper, "_PROXY") {
			name = upper
		}
		switch {
		case !slices.Contains(settingNames, name):
		case m[2] == "":
			s.bad(name, fmt.Sprintf("is not written as NAME=value in line %d of .env: write %s=value", i+1, name))
		default:
			file[name] = m[3] + m[4] + strings.TrimLeft(m[5], " \t")
		}
	}
	for _, name := range settingNames {
		isProxy := strings.HasSuffix(name, "_PROXY")
		switch { // the environment wins
		case file[name] == "", getenv(name) != "", isProxy && getenv(strings.ToLower(name)) != "":
			delete(file, name)
			continue
		case isProxy:
			os.Setenv(name, file[name]) // where net/http looks for it
		}
		s.fromFile = append(s.fromFile, name)
	}
}

// value returns a setting if nothing is wrong with its characters.
func (s *settings) value(name string) string {
	value := s.get(name)
	isPath := name == "WX_APPSECRET_FILE" || name == "TLS_CERT" || name == "TLS_KEY"
	if text := flaw(value, isPath); text != "" {
		s.bad(name, text)
		return ""
	}
	return value
}

// list returns the entries of a setting, between commas. where stands in front of what is wrong with them.
func (s *settings) list(name, where, value string) (entries []string) {
	for entry := range strings.SplitSeq(value, ",") {
		entry = strings.Trim(entry, " \t")
		entries = append(entries, entry)
		text := flaw(entry, false)
		if entry == "" {
			text = "has an empty entry: write a value there, and no comma at the end"
		}
		if text != "" {
			s.bad(name, where+text)
			return nil
		}
	}
	return entries
}

var (
	windowsEnd = regexp.MustCompile("\r\n*$")
	comment    = regexp.MustCompile("(^|[ \t])#")
	inQuotes   = regexp.MustCompile("^[\"'`“”‘’]|[\"'`“”‘’]$")
)

// flaw says what is wrong with the characters of value, or nothing. A path may hold white space and Chinese.
func flaw(value string, isPath bool) string {
	switch {
	case windowsEnd.MatchString(value):
		return "ends in a Windows line end (CR): save the file that it comes from with LF line ends"
	case inQuotes.MatchString(value):
		return "has quotes around it: remove them"
	case strings.ContainsFunc(value, isInvisible):
		return "holds an invisible character: type it anew"
	case strings.Contains(value, "${"):
		return "holds ${…}, which nothing has replaced: write the value itself"
	case isPath:
	case comment.MatchString(value):
		return "has a comment behind it: put the comment on a line of its own"
	case strings.ContainsFunc(value, unicode.IsSpace):
		return "holds white space, a space or a line break: remove it"
	case strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }):
		return "is not plain ASCII text: replace a placeholder by the real value, and full-width ：， by : and ,"
	}
	return ""
}

// isInvisible finds zero-width and no-break spaces, byte order marks and control characters. What else is white space
// can be seen, also the full-width space of Chinese.
func isInvisible(r rune) bool {
	return !unicode.IsPrint(r) && !strings.ContainsRune("\t\n\v\f\r\u3000", r)
}

var (
	looksLikeAppID     = regexp.MustCompile(`^wx[0-9a-f]{16}$`).MatchString
	looksLikeAppSecret = regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString
)

const trySandbox = ", or try it with -sandbox, which needs neither AppID nor AppSecret"

func (s *settings) appIDs(sandbox bool) []string {
	const name = "WX_APPID"
	switch {
	case s.get(name) != "":
	case s.problems[dotEnv] != "": // it may be in there
		return nil
	case sandbox:
		return []string{"wx0000000000000000"}
	case s.renamed:
		s.bad(name, "is not set: rename .env.txt to .env, the only name that is read"+trySandbox)
		return nil
	default:
		s.bad(name, "is not set: copy the AppID from "+console+", into the environment or .env"+trySandbox)
		return nil
	}
	appIDs := s.list(name, "", s.get(name))
	for i, appID := range appIDs {
		switch {
		case looksLikeAppSecret(appID):
			s.bad(name, "holds an AppSecret: write the AppID there, and the AppSecret into WX_APPSECRET")
		case slices.Contains(appIDs[:i], appID):
			s.bad(name, "holds the same AppID twice: write each once")
		case !looksLikeAppID(appID):
			s.warnOf(name, i, appIDs, "an AppID (wx and 16 of 0-9a-f): copy it again from "+console)
		}
	}
	return appIDs
}

// warnOf warns of entry i of a setting.
func (s *settings) warnOf(name string, i int, entries []string, looks string) {
	if len(entries) > 1 {
		name = fmt.Sprintf("%s, number %d,", name, i+1)
	}
	s.warnings = append(s.warnings, name+" does not look like "+looks)
}

// appSecrets returns the AppSecret of each of appIDs.
func (s *settings) appSecrets(sandbox bool, appIDs []string) (appSecrets []string) {
	name, value, file := "WX_APPSECRET", s.get("WX_APPSECRET"), s.value("WX_APPSECRET_FILE")
	switch {
	case value != "" && s.get("WX_APPSECRET_FILE") != "":
		s.bad(name, "and WX_APPSECRET_FILE are both set: remove one of them")
		return nil
	case value != "":
		appSecrets = s.list(name, "", value)
	case file != "":
		name = "WX_APPSECRET_FILE"
		appSecrets = s.readSecrets(name, file)
	case s.get("WX_APPSECRET_FILE") != "" || s.problems[dotEnv] != "": // a bad one
	case sandbox:
		appSecrets = slices.Repeat([]string{strings.Repeat("0", 32)}, len(appIDs))
	default:
		s.bad(name, "is not set: set it, or WX_APPSECRET_FILE to a file that holds it"+trySandbox)
	}
	if appIDs != nil && appSecrets != nil && len(appIDs) != len(appSecrets) {
		s.bad(name, fmt.Sprintf("has another number of entries than WX_APPID (%d and %d): write one for each, in order",
			len(appSecrets), len(appIDs)))
	}
	for i, appSecret := range appSecrets {
		if !looksLikeAppSecret(appSecret) {
			s.warnOf(name, i, appSecrets, "an AppSecret (32 of 0-9a-f): copy it again")
		}
	}
	return appSecrets
}

var lineEnds = regexp.MustCompile(`[\s\pZ]*\n[\s\pZ]*`) // with the white space around them, and empty lines

// readSecrets returns the AppSecrets in a file, between commas or one a line.
func (s *settings) readSecrets(name, file string) []string {
	content, err := os.ReadFile(file) // its error wraps one without the path, which may be a secret in the wrong place
	text := strings.TrimSpace(strings.ReplaceAll(string(content), "\ufeff", ""))
	switch {
	case err != nil:
		s.bad(name, fmt.Sprintf("cannot be read (%v): name a file that this user may read", errors.Unwrap(err)))
	case strings.Contains(text, "\x00"):
		s.bad(name, "names a file in UTF-16: save it as UTF-8")
	case text == "":
		s.bad(name, "names a file that is empty: put the AppSecret into it")
	case strings.Contains(text, "WX_APPSECRET") && !strings.Contains(text, "${"):
		s.bad(name, "names a file that says WX_APPSECRET: the file has to hold the AppSecret alone")
	default:
		return s.list(name, "names a file that ", lineEnds.ReplaceAllString(text, ","))
	}
	return nil
}

func (s *settings) addr(sandbox bool) string {
	unset := ":2020"
	if sandbox {
		unset = "127.0.0.1:2020"
	}
	value := cmp.Or(s.value("ADDR"), unset)
	_, port, err := net.SplitHostPort(value)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		s.bad("ADDR", "is not a listen address: write host:port or :port, with a port up to 65535, as in :2020")
	}
	return value
}

func (s *settings) timeout() time.Duration {
	const name, write = "WX_TIMEOUT", ": write 5s or 800ms"
	value := cmp.Or(s.value(name), "5s")
	d, err := time.ParseDuration(value)
	_, notNumber := strconv.ParseFloat(value, 64)
	switch {
	case err != nil && notNumber == nil:
		s.bad(name, "has no unit"+write)
	case err != nil || d <= 0 || d > time.Hour:
		s.bad(name, "is not a time above zero and up to 1h"+write)
	}
	return d
}

func (s *settings) count(name string, unset int) int {
	value := cmp.Or(s.value(name), strconv.Itoa(unset))
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		s.bad(name, "is not a whole number above zero: write digits only, as in "+strconv.Itoa(unset))
	}
	return n
}

func (s *settings) baseURLs() (urls []*url.URL) {
	const name = "WX_BASE_URL"
	for _, entry := range s.list(name, "", cmp.Or(s.get(name), wechatURLs)) {
		u, err := url.Parse(entry)
		switch {
		case strings.Contains(entry, wechatPath):
			s.bad(name, "holds the path of the API: leave "+wechatPath+" out, since wxopenid adds it")
		case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", u.User != nil,
			strings.ContainsAny(entry, "?#"):
			s.bad(name, "is not a list of base URLs: write https://host or https://host/prefix, with commas")
		case !portExists(u):
			s.bad(name, "has a port that does not exist: the port has to be 1 to 65535")
		default:
			urls = append(urls, u)
		}
	}
	return urls
}

// portExists reports whether the port of u, if it has one, is 1 to 65535.
func portExists(u *url.URL) bool {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	return err == nil && port > 0
}

// checkRoutes looks at how base URLs are reached. net/http drops a bad proxy variable without a word.
func (s *settings) checkRoutes(bases []*url.URL) {
	if s.get(proxyVariable(s.get, "all")) != "" && s.get(proxyVariable(s.get, "https")) == "" {
		s.warnings = append(s.warnings, "ALL_PROXY is used by curl, but not here: set HTTPS_PROXY")
	}
	for _, u := range bases {
		if host := u.Hostname(); host == "localhost" || net.ParseIP(host).IsLoopback() {
			continue
		}
		if u.Scheme == "http" {
			s.warnings = append(s.warnings, "WX_BASE_URL: the AppSecret travels unencrypted to "+u.Host+": write https")
		}
		name := proxyVariable(s.get, u.Scheme)
		if value := s.value(name); value != "" && !isProxy(value) {
			s.bad(name, "is not the URL of a proxy: write http://host:port or socks5://host:port, "+
				"and in a password %25 for %, %23 for # and %3F for ?")
		}
	}
}

// proxyVariable returns the name of the variable that is set for scheme: HTTPS_PROXY, or https_proxy.
func proxyVariable(get func(string) string, scheme string) string {
	upper, lower := strings.ToUpper(scheme)+"_PROXY", scheme+"_proxy"
	if get(upper) == "" && get(lower) != "" {
		return lower
	}
	return upper
}

// isProxy reports whether net/http can use value. It takes one without a scheme for http.
func isProxy(value string) bool {
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" {
		u, err = url.Parse("http://" + value)
	}
	return err == nil && u.Hostname() != "" && !strings.HasSuffix(u.Host, ":") && portExists(u) &&
		(u.Path == "" || u.Path == "/") && !strings.ContainsAny(value, "#?") &&
		slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme)
}
