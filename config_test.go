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
	const urls = "[https://api.weixin.qq.com https://api2.weixin.qq.com]"
	defaults := config{appID: testAppID, appSecret: testSecret, addr: ":2020", timeout: 5 * time.Second,
		maxInflight: 1024, maxConns: 10_000}
	tests := []struct {
		name    string
		env     map[string]string
		sandbox bool
		differs func(*config) // from the defaults
		urls    string
	}{
		{"defaults", credentials(), false, func(*config) {}, urls},
		{"empty is not set", credentials("ADDR", "", "WX_APPSECRET_FILE", "", "WX_BASE_URL", "", "WX_TIMEOUT", "",
			"MAX_INFLIGHT", "", "MAX_CONNS", "", "TLS_CERT", "", "TLS_KEY", ""), false, func(*config) {}, urls},
		{"AppSecret in a file", credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", secretFile), false, func(*config) {}, urls},
		{"odd AppSecret", credentials("WX_APPSECRET", `a"b'&=+%#?`), false, func(c *config) { c.appSecret = `a"b'&=+%#?` }, urls},
		{"IPv6", credentials("ADDR", "[::1]:65535"), false, func(c *config) { c.addr = "[::1]:65535" }, urls},
		{"timeout", credentials("WX_TIMEOUT", "1m30s"), false, func(c *config) { c.timeout = 90 * time.Second }, urls},
		{"one at a time", credentials("MAX_INFLIGHT", "1", "MAX_CONNS", "1"), false,
			func(c *config) { c.maxInflight, c.maxConns = 1, 1 }, urls},
		{"HTTPS", credentials("TLS_CERT", "证书 1.pem", "TLS_KEY", "k.pem"), false,
			func(c *config) { c.tlsCert, c.tlsKey = "证书 1.pem", "k.pem" }, urls},
		{"base URLs with prefixes", credentials("WX_BASE_URL", "https://gate.example:8443/wx/,https://[2001:db8::1]/a/b,HTTPS://x"),
			false, func(*config) {}, "[https://gate.example:8443/wx/ https://[2001:db8::1]/a/b https://x]"},
		{"sandbox", credentials(), true, func(c *config) { c.addr, c.sandbox = "127.0.0.1:2020", true }, "[]"},
		{"sandbox ignores the base URL", credentials("WX_BASE_URL", "not one", "ADDR", ":1"), true,
			func(c *config) { c.addr, c.sandbox = ":1", true }, "[]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := must(loadConfig(func(name string) string { return test.env[name] }, test.sandbox))
			if urls := fmt.Sprint(got.baseURLs); urls != test.urls {
				t.Errorf("got base URLs %s, want %s", urls, test.urls)
			}
			want := defaults
			test.differs(&want)
			got.baseURLs, got.warnings = nil, nil // TestWarnings has the warnings
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
	if err != nil || one.appID == "" || one.appSecret == "" || one.appSecret == other.appSecret || len(one.warnings) > 0 {
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
	tests := []struct {
		name  string
		env   map[string]string
		words string // in the line: the variable, the cause and what to do
	}{
		{"no AppID", credentials("WX_APPID", ""), "WX_APPID not set mp.weixin.qq.com -sandbox"},
		{"no AppSecret", credentials("WX_APPSECRET", ""), "WX_APPSECRET not set WX_APPSECRET_FILE -sandbox"},
		{"placeholder", credentials("WX_APPID", "你的AppID"), "WX_APPID ASCII placeholder"},
		{"space at the end", credentials("WX_APPID", "hunter2 "), "WX_APPID white space remove"},
		{"space inside", credentials("WX_APPSECRET", "hunter2 hunter2"), "WX_APPSECRET white space"},
		{"no-break space", credentials("WX_APPSECRET", "hunter2\u00a0"), "WX_APPSECRET white space"},
		{"control character", credentials("WX_APPSECRET", "hunter2\x7f"), "WX_APPSECRET ASCII"},
		{"CR", credentials("WX_APPID", "hunter2\r"), "WX_APPID CR LF"},
		{"CR after the AppSecret", credentials("WX_APPSECRET", "hunter2\r"), "WX_APPSECRET CR LF"},
		{"CR after quotes", credentials("WX_APPSECRET", "\"hunter2\"\r"), "WX_APPSECRET CR LF"},
		{"CR and LF", credentials("WX_APPSECRET", "hunter2\r\n"), "WX_APPSECRET CR LF"},
		{"CR after a path", credentials("TLS_CERT", "hunter2\r"), "TLS_CERT CR LF"},
		{"CR after a file name", credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", "hunter2\r"), "WX_APPSECRET_FILE CR LF"},
		{"CR alone", credentials("WX_TIMEOUT", "\r"), "WX_TIMEOUT CR"},
		{"double quotes", credentials("WX_APPSECRET", `"hunter2"`), "WX_APPSECRET quotes remove"},
		{"single quotes", credentials("WX_APPID", "'hunter2'"), "WX_APPID quotes remove"},
		{"quotes of Chinese keyboards", credentials("WX_APPID", "“hunter2”"), "WX_APPID quotes remove"},
		{"quoted path", credentials("TLS_KEY", `"hunter2"`), "TLS_KEY quotes remove"},
		{"AppSecret twice", credentials("WX_APPSECRET", "hunter2", "WX_APPSECRET_FILE", "hunter2"),
			"WX_APPSECRET WX_APPSECRET_FILE both remove"},
		{"no such file", credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", "hunter2"), "WX_APPSECRET_FILE cannot be read name"},
		{"directory", credentials("WX_APPSECRET", "", "WX_APPSECRET_FILE", dir), "WX_APPSECRET_FILE cannot be read name"},
		{"empty file", inFile("\n"), "WX_APPSECRET_FILE empty put"},
		{"file with quotes", inFile("\"hunter2\"\n"), "WX_APPSECRET_FILE quotes remove"},
		{"file with a placeholder", inFile("你的AppSecret"), "WX_APPSECRET_FILE ASCII placeholder"},
		{"file with a BOM", inFile("\ufeffhunter2"), "WX_APPSECRET_FILE BOM UTF-8"},
		{"file in UTF-16", inFile("\xff\xfeh\x00u\x00"), "WX_APPSECRET_FILE UTF-16 UTF-8"},
		{"file in UTF-16, big-endian", inFile("\xfe\xff\x00h\x00u"), "WX_APPSECRET_FILE UTF-16 UTF-8"},
		{"file in UTF-16 without BOM", inFile("h\x00u\x00"), "WX_APPSECRET_FILE UTF-16 UTF-8"},
		{"file as .env", inFile("WX_APPSECRET=hunter2\n"), "WX_APPSECRET_FILE alone"},
		{"ADDR without port", credentials("ADDR", "hunter2"), "ADDR host:port"},
		{"ADDR with a port name", credentials("ADDR", ":hunter2"), "ADDR host:port"},
		{"ADDR with a port too high", credentials("ADDR", "hunter2:65536"), "ADDR 65535"},
		{"ADDR that is a URL", credentials("ADDR", "http://hunter2:80"), "ADDR host:port"},
		{"base URL with the path", credentials("WX_BASE_URL", "https://hunter2/sns/jscode2session"), "WX_BASE_URL leave /sns/jscode2session out"},
		{"second base URL with the path", credentials("WX_BASE_URL", "https://x,https://hunter2/sns/jscode2session/"), "WX_BASE_URL leave"},
		{"base URL without scheme", credentials("WX_BASE_URL", "hunter2"), "WX_BASE_URL https://host"},
		{"base URL with another scheme", credentials("WX_BASE_URL", "ftp://hunter2"), "WX_BASE_URL https://host"},
		{"base URL without host", credentials("WX_BASE_URL", "https:///hunter2"), "WX_BASE_URL https://host"},
		{"base URL with a port alone", credentials("WX_BASE_URL", "https://:443/hunter2"), "WX_BASE_URL https://host"},
		{"base URL with a password", credentials("WX_BASE_URL", "https://x:hunter2@x"), "WX_BASE_URL https://host"},
		{"base URL with a query", credentials("WX_BASE_URL", "https://hunter2?x"), "WX_BASE_URL https://host"},
		{"base URL that cannot be parsed", credentials("WX_BASE_URL", "https://hunter2:x"), "WX_BASE_URL https://host"},
		{"base URL left out", credentials("WX_BASE_URL", "https://hunter2,"), "WX_BASE_URL https://host"},
		{"timeout without unit", credentials("WX_TIMEOUT", "5"), "WX_TIMEOUT no unit 5s"},
		{"timeout of zero", credentials("WX_TIMEOUT", "0s"), "WX_TIMEOUT above zero 5s"},
		{"timeout below zero", credentials("WX_TIMEOUT", "-5s"), "WX_TIMEOUT above zero 5s"},
		{"timeout in words", credentials("WX_TIMEOUT", "hunter2"), "WX_TIMEOUT unknown unit 5s"},
		{"zero at a time", credentials("MAX_INFLIGHT", "0"), "MAX_INFLIGHT above zero 1024"},
		{"a fraction", credentials("MAX_INFLIGHT", "1.5"), "MAX_INFLIGHT whole 1024"},
		{"proxy with a lone %", credentials("HTTPS_PROXY", "http://u:hunter2%@x:80"), "HTTPS_PROXY %25"},
		{"proxy with a bad port", credentials("HTTPS_PROXY", ":7890x"), "HTTPS_PROXY http://host:port"},
		{"proxy without host", credentials("https_proxy", "http:/hunter2"), "https_proxy http://host:port"},
		{"proxy of another kind", credentials("HTTPS_PROXY", "socks4://hunter2:1"), "HTTPS_PROXY socks5://"},
		{"proxy for HTTP", credentials("WX_BASE_URL", "http://192.0.2.1", "HTTP_PROXY", "socks://hunter2:1"), "HTTP_PROXY socks5://"},
		{"CR after a proxy", credentials("HTTPS_PROXY", "http://hunter2:8080\r"), "HTTPS_PROXY CR LF"},
		{"certificate without key", credentials("TLS_CERT", "hunter2"), "TLS_CERT TLS_KEY both neither"},
		{"key without certificate", credentials("TLS_KEY", "hunter2"), "TLS_CERT TLS_KEY both neither"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			lines := badSettings(t, test.env)
			checkWords(t, "standard error", lines[0], test.words)
			pair := strings.HasPrefix(test.words, "TLS_") && len(lines) == 2 // that the other one is not set
			if len(lines) != 1 && !pair {
				t.Errorf("got %q, want one line", lines)
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
		lines := strings.Join(badSettings(t, env), "\n")
		checkWords(t, "standard error", lines, strings.Join(names, " "))
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

func TestWarnings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, variable, value string
		words                 string // of the one warning, or nothing
	}{
		{"AppID", "WX_APPID", testAppID, ""},
		{"placeholder", "WX_APPID", "your_appid", "WX_APPID wx mp.weixin.qq.com"},
		{"capitals", "WX_APPID", "wx0123456789ABCDEF", "WX_APPID"},
		{"loopback", "WX_BASE_URL", "http://127.0.0.1:1,http://localhost:1,http://[::1]:1,http://127.1.2.3", ""},
		{"AppSecret", "WX_APPSECRET", "0123456789ABCDEF", "AppSecret 32 mp.weixin.qq.com"},
		{"ALL_PROXY", "ALL_PROXY", "socks5://127.0.0.1:1", "ALL_PROXY HTTPS_PROXY"},
		{"proxy without scheme", "HTTPS_PROXY", "127.0.0.1:7890", ""},
		{"proxy that is not used", "HTTP_PROXY", "socks4://x", ""},
		{"plain HTTP", "WX_BASE_URL", "https://192.0.2.1,http://192.0.2.2:80/wx", "unencrypted 192.0.2.2:80 https"},
		{"name like loopback", "WX_BASE_URL", "http://127.0.0.1.example", "unencrypted 127.0.0.1.example"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, credentials(test.variable, test.value))
			p.stop()
			checkWords(t, "the log", strings.Join(p.log.warnings(), "\n"), test.words)
			if test.variable == "WX_APPID" && strings.Contains(p.log.String(), test.value) {
				t.Errorf("got log\n%s\nwant no value in it", p.log)
			}
		})
	}
}
