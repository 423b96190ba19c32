package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	secretFile := filepath.Join(t.TempDir(), "应用 密钥")
	writeFile(t, secretFile, "\n\t "+testSecret+" \r\n\n")
	empty := credentials("ADDR", "", "WX_APPSECRET_FILE", "", "WX_BASE_URL", "", "WX_TIMEOUT", "", "MAX_INFLIGHT", "", "MAX_CONNS", "",
		"TLS_CERT", "", "TLS_KEY", "")
	nothing := func(*config) {}
	tests := []struct {
		name    string
		env     map[string]string
		sandbox bool
		differs func(*config) // from the defaults
		urls    string        // or the default
	}{
		{name: "defaults", env: credentials(), differs: nothing},
		{name: "empty is not set", env: empty, differs: nothing},
		{name: "AppSecret in a file", env: credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", secretFile),
			differs: nothing},
		{name: "odd AppSecret", env: credentials("WX_APPSECRET", `a"b'&=+%#?`),
			differs: func(c *config) { c.appSecrets = []string{`a"b'&=+%#?`} }},
		{name: "IPv6", env: credentials("ADDR", "[::1]:65535"), differs: func(c *config) { c.addr = "[::1]:65535" }},
		{name: "timeout", env: credentials("WX_TIMEOUT", "1m30s"),
			differs: func(c *config) { c.timeout = 90 * time.Second }},
		{name: "one at a time", env: credentials("MAX_INFLIGHT", "1", "MAX_CONNS", "1"),
			differs: func(c *config) { c.maxInflight, c.maxConns = 1, 1 }},
		{name: "HTTPS", env: credentials("TLS_CERT", "证书 1.pem", "TLS_KEY", "k.pem"),
			differs: func(c *config) { c.tlsCert, c.tlsKey = "证书 1.pem", "k.pem" }},
		{name: "prefixes", env: credentials("WX_BASE_URL", "https://x:8443/wx/,https://[2001:db8::1]/a/b,HTTPS://x"), differs: nothing,
			urls: "[https://x:8443/wx/ https://[2001:db8::1]/a/b https://x]"},
		{name: "sandbox", env: credentials("WX_BASE_URL", "not one"), sandbox: true, urls: "[]",
			differs: func(c *config) { c.addr, c.sandbox = "127.0.0.1:2020", true }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := must(loadConfig(func(name string) string { return test.env[name] }, test.sandbox))
			if test.urls == "" {
				test.urls = "[https://api.weixin.qq.com https://api2.weixin.qq.com]"
			}
			if urls := fmt.Sprint(got.baseURLs); urls != test.urls {
				t.Errorf("got base URLs %s, want %s", urls, test.urls)
			}
			want := config{appIDs: []string{testAppID}, appSecrets: []string{testSecret}, addr: ":2020", timeout: 5 * time.Second,
				maxInflight: 1024, maxConns: 10_000}
			test.differs(&want)
			got.baseURLs, got.warnings, got.fromFile = nil, nil, nil // TestWarnings has the warnings
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestSandboxMakesUpCredentials(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "" }
	one, err := loadConfig(none, true)
	other, _ := loadConfig(none, true)
	if err != nil || len(one.appIDs) != 1 || len(one.appSecrets) != 1 || one.appSecrets[0] == other.appSecrets[0] || len(one.warnings) > 0 {
		t.Errorf("got %+v, then %+v, error %v, want an AppID and an AppSecret of its own each time", one, other, err)
	}
}

// TestBadSettings has rows of one bad setting each. Their values hold "hunter2", which is never to be printed.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	dir, files := t.TempDir(), 0
	inFile := func(content string) map[string]string {
		files++
		path := filepath.Join(dir, fmt.Sprint("hunter2-", files))
		writeFile(t, path, content)
		return credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", path)
	}
	set := func(name, value string) map[string]string { return credentials(name, value) }
	tests := []struct {
		env  map[string]string
		line string // its beginning, or all of it
	}{
		{env: set("WX_APPID", ""), line: "WX_APPID is not set: set it to the mini program's AppID (mp.weixin.qq.com, "},
		{env: set("WX_APPSECRET", ""), line: "WX_APPSECRET is not set: set it, or WX_APPSECRET_FILE to a file that " +
			"holds it, or try it with -sandbox, which needs neither AppID nor AppSecret"},
		{env: set("WX_APPID", "你的AppID"), line: "WX_APPID is not plain ASCII text: replace a placeholder by"},
		{env: set("ADDR", "：2020"), line: "ADDR is not plain ASCII text: replace a placeholder by the real value, " +
			"and full-width punctuation (：，) by : and ,"},
		{env: set("WX_APPID", "hunter2 "), line: "WX_APPID holds white space"},
		{env: set("WX_APPSECRET", "hunter2\u00a0x"), line: "WX_APPSECRET holds white space"},
		{env: set("WX_APPSECRET", "hunter2\x7f"), line: "WX_APPSECRET is not plain ASCII"},
		{env: set("WX_APPSECRET", "\"hunter2\"\r"), line: "WX_APPSECRET ends in a Windows line end (CR): save"},
		{env: set("WX_APPID", "hunter2\r\n"), line: "WX_APPID ends in a Windows line end"},
		{env: set("TLS_CERT", "hunter2\r"), line: "TLS_CERT ends in a Windows line end"},
		{env: set("WX_TIMEOUT", "\r"), line: "WX_TIMEOUT ends in a Windows line end"},
		{env: set("HTTPS_PROXY", "http://hunter2:8080\r"), line: "HTTPS_PROXY ends in a Windows line end"},
		{env: set("WX_APPSECRET", `"hunter2"`), line: "WX_APPSECRET has quotes around it: remove them"},
		{env: set("WX_APPID", "“hunter2”"), line: "WX_APPID has quotes"},
		{env: set("TLS_KEY", `'hunter2'`), line: "TLS_KEY has quotes"},
		{env: set("WX_APPSECRET_FILE", "hunter2"), line: "WX_APPSECRET and WX_APPSECRET_FILE are both set: remove"},
		{env: credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", "hunter2"),
			line: "WX_APPSECRET_FILE cannot be read ("},
		{env: inFile("\n"), line: "WX_APPSECRET_FILE names a file that is empty: put"},
		{env: inFile("\"hunter2\"\n"), line: "WX_APPSECRET_FILE names a file whose content has quotes"},
		{env: inFile("\ufeffhunter2"), line: "WX_APPSECRET_FILE names a file that begins with a byte order mark"},
		{env: inFile("\xff\xfeh\x00u\x00"),
			line: "WX_APPSECRET_FILE names a file in UTF-16: save it as UTF-8 without BOM"},
		{env: inFile("\xfe\xff\x00h\x00u"), line: "WX_APPSECRET_FILE names a file in UTF-16"},
		{env: inFile("h\x00u\x00"), line: "WX_APPSECRET_FILE names a file in UTF-16"},
		{env: inFile("WX_APPSECRET=hunter2\n"), line: "WX_APPSECRET_FILE names a file with more than the AppSecret"},
		{env: set("ADDR", "hunter2"), line: "ADDR is not a listen address: write host:port or :port"},
		{env: set("ADDR", ":hunter2"), line: "ADDR is not a listen address"},
		{env: set("ADDR", "hunter2:65536"), line: "ADDR has a port that does not exist: the port has to be 0 to 65535"},
		{env: set("WX_BASE_URL", "https://x,https://hunter2/sns/jscode2session/"),
			line: "WX_BASE_URL holds the path of the API: leave /sns/jscode2session out, since wxopenid adds it"},
		{env: set("WX_BASE_URL", "hunter2"), line: "WX_BASE_URL is not a list of base URLs: write https://host"},
		{env: set("WX_BASE_URL", "ftp://hunter2"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_BASE_URL", "https://:443/hunter2"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_BASE_URL", "https://x:hunter2@x"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_BASE_URL", "https://hunter2?x"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_BASE_URL", "https://hunter2:x"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_BASE_URL", "https://hunter2,"), line: "WX_BASE_URL is not a list of base URLs"},
		{env: set("WX_TIMEOUT", "5"), line: "WX_TIMEOUT has no unit: write 5s or 800ms"},
		{env: set("WX_TIMEOUT", "-5s"), line: "WX_TIMEOUT is not above zero: write 5s"},
		{env: set("WX_TIMEOUT", "hunter2"), line: "WX_TIMEOUT is not a time: write 5s"},
		{env: set("WX_TIMEOUT", "5sec"), line: "WX_TIMEOUT has an unknown unit: write 5s or 800ms"},
		{env: set("MAX_INFLIGHT", "0"),
			line: "MAX_INFLIGHT is not a whole number above zero: write digits only, as in 1024"},
		{env: set("MAX_CONNS", "10_000"), line: "MAX_CONNS is not a whole number above zero: write digits only"},
		{env: set("HTTPS_PROXY", "http://u:hunter2%@x:80"), line: "HTTPS_PROXY is not the URL of a proxy: write http://host:port " +
			"or socks5://host:port, and %25 for % in a password"},
		{env: set("HTTPS_PROXY", ":7890x"), line: "HTTPS_PROXY is not the URL of a proxy"},
		{env: credentials("HTTPS_PROXY", "socks4://hunter2", "NO_PROXY", ".x,x:80,y", "WX_BASE_URL", "https://x"),
			line: "HTTPS_PROXY is not the URL of a proxy"},
		{env: set("HTTPS_PROXY", "hunter2:70000"), line: "HTTPS_PROXY is not the URL of a proxy"},
		{env: set("https_proxy", "http:/hunter2"), line: "https_proxy is not the URL of a proxy"},
		{env: set("HTTPS_PROXY", "socks4://hunter2:1"), line: "HTTPS_PROXY is not the URL of a proxy"},
		{env: credentials("WX_BASE_URL", "http://192.0.2.1", "HTTP_PROXY", "socks://hunter2:1"),
			line: "HTTP_PROXY is not the URL of a proxy"},
		{env: set("TLS_CERT", "hunter2"),
			line: "TLS_CERT and TLS_KEY belong together: set both to serve HTTPS, or neither"},
	}
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			t.Parallel()
			lines := badSettings(t, test.env)
			if !strings.HasPrefix(lines[0], test.line) || len(lines) != 1 {
				t.Errorf("got %q, want one line %q", lines, test.line)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		t.Parallel()
		names := []string{"WX_APPID", "WX_APPSECRET", "ADDR", "WX_TIMEOUT", "MAX_INFLIGHT", "MAX_CONNS", "TLS_CERT", "WX_BASE_URL"}
		env := make(map[string]string)
		for _, name := range names {
			env[name] = "hunter2 \x01"
		}
		checkWords(t, "standard error", strings.Join(badSettings(t, env), "\n"), strings.Join(names, " "))
	})
}

// badSettings returns the lines that the program prints of env, which hold no value.
func badSettings(t *testing.T, env map[string]string) []string {
	t.Helper()
	stdout, stderr := runToEnd(t, 2, env)
	checkWords(t, "standard output", stdout, "")
	for _, value := range []string{"hunter2", "你的", testSecret, testAppID, "/tmp"} {
		if strings.Contains(stderr, value) {
			t.Errorf("got %q, want no value in it", stderr)
		}
	}
	return strings.Split(strings.TrimSpace(stderr), "\n")
}

// TestWarnings has odd settings with which the program starts.
func TestWarnings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		env   map[string]string
		words string // of the one warning, or nothing
	}{
		{name: "AppID with capitals", env: credentials("WX_APPID", "wx0123456789ABCDEF"),
			words: "WX_APPID wx mp.weixin.qq.com"},
		{name: "AppSecret with capitals", env: credentials("WX_APPSECRET", "0123456789ABCDEF"),
			words: "AppSecret 32 mp.weixin.qq.com"},
		{name: "loopback", env: credentials("WX_BASE_URL", "http://127.0.0.1:1,http://localhost:1,http://[::1]:1", "HTTP_PROXY", "x:y")},
		{name: "plain HTTP", env: credentials("WX_BASE_URL", "https://192.0.2.1,http://192.0.2.2:80/wx"),
			words: "unencrypted 192.0.2.2:80 https"},
		{name: "name like loopback", env: credentials("WX_BASE_URL", "http://127.0.0.1.example"),
			words: "unencrypted 127.0.0.1.example"},
		{name: "ALL_PROXY", env: credentials("all_proxy", "socks5://127.0.0.1:1"), words: "ALL_PROXY HTTPS_PROXY"},
		{name: "ALL_PROXY and NO_PROXY", env: credentials("ALL_PROXY", "x", "NO_PROXY", "example.com")},
		{name: "proxy without scheme", env: credentials("HTTPS_PROXY", "127.0.0.1:7890")},
		{name: "proxy that is not used", env: credentials("HTTP_PROXY", "socks4://x")},
		{name: "proxy for no base URL",
			env: credentials("HTTPS_PROXY", "socks4://x", "no_proxy", "example.com, *.QQ.com:443")},
		{name: "proxy for nothing", env: credentials("HTTPS_PROXY", "socks4://x", "NO_PROXY", "*")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, test.env)
			p.stop()
			checkWords(t, "the log", strings.Join(p.log.warnings(), "\n"), test.words)
			if strings.Contains(p.log.String(), "ABCDEF") {
				t.Errorf("got log\n%s\nwant no value in it", p.log)
			}
		})
	}
}
