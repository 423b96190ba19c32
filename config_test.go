package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	secretFile := filepath.Join(t.TempDir(), "secret")
	writeFile(t, secretFile, "\n\t "+testSecret+" \r\n\n")
	want := config{appID: testAppID, appSecret: testSecret, addr: ":2020", timeout: 5 * time.Second, maxInflight: 1024}
	const urls = "[https://api.weixin.qq.com https://api2.weixin.qq.com]"
	tests := []struct {
		name    string
		env     map[string]string // beside credentials
		sandbox bool
		differs func(*config) // from the defaults
		urls    string
	}{
		{"defaults", nil, false, func(*config) {}, urls},
		{"empty is unset", map[string]string{"ADDR": "", "WX_APPSECRET_FILE": "", "WX_BASE_URL": "", "WX_TIMEOUT": "", "MAX_INFLIGHT": "", "TLS_CERT": "", "TLS_KEY": ""}, false, func(*config) {}, urls},
		{"secret in a file", map[string]string{"WX_APPSECRET": "", "WX_APPSECRET_FILE": secretFile}, false, func(*config) {}, urls},
		{"port alone", map[string]string{"ADDR": ":80"}, false, func(c *config) { c.addr = ":80" }, urls},
		{"any port", map[string]string{"ADDR": "127.0.0.1:0"}, false, func(c *config) { c.addr = "127.0.0.1:0" }, urls},
		{"IPv6", map[string]string{"ADDR": "[::1]:65535"}, false, func(c *config) { c.addr = "[::1]:65535" }, urls},
		{"name", map[string]string{"ADDR": "localhost:8080"}, false, func(c *config) { c.addr = "localhost:8080" }, urls},
		{"timeout", map[string]string{"WX_TIMEOUT": "1m30s"}, false, func(c *config) { c.timeout = 90 * time.Second }, urls},
		{"one at a time", map[string]string{"MAX_INFLIGHT": "1"}, false, func(c *config) { c.maxInflight = 1 }, urls},
		{"HTTPS", map[string]string{"TLS_CERT": "c.pem", "TLS_KEY": "k.pem"}, false, func(c *config) { c.tlsCert, c.tlsKey = "c.pem", "k.pem" }, urls},
		{"one base URL", map[string]string{"WX_BASE_URL": "http://localhost:2020"}, false, func(*config) {}, "[http://localhost:2020]"},
		{"base URLs with prefixes", map[string]string{"WX_BASE_URL": "https://gate.example:8443/wx/,https://[2001:db8::1]/a/b,HTTPS://x"}, false, func(*config) {}, "[https://gate.example:8443/wx/ https://[2001:db8::1]/a/b https://x]"},
		{"sandbox", nil, true, func(c *config) { c.addr, c.sandbox = "127.0.0.1:2020", true }, "[]"},
		{"sandbox ignores the base URL", map[string]string{"WX_BASE_URL": "not one", "ADDR": ":1"}, true, func(c *config) { c.addr, c.sandbox = ":1", true }, "[]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := credentials()
			maps.Copy(env, test.env)
			got, err := loadConfig(func(name string) string { return env[name] }, test.sandbox)
			if err != nil {
				t.Fatal(err)
			}
			if urls := fmt.Sprint(got.baseURLs); urls != test.urls {
				t.Errorf("got base URLs %s, want %s", urls, test.urls)
			}
			want, got := want, got
			test.differs(&want)
			got.baseURLs = nil
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
	if err != nil || one.appID == "" || one.appSecret == "" || one.appSecret == other.appSecret {
		t.Errorf("got %+v, then %+v, error %v, want an AppID and an AppSecret of its own each time", one, other, err)
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	const both = "WX_APPSECRET WX_APPSECRET_FILE"
	tests := []struct {
		name  string
		env   map[string]string // beside credentials; the values hold "hunter2", never to be printed
		names string            // of the variables to mend
	}{
		{"no credentials", map[string]string{"WX_APPID": "", "WX_APPSECRET": ""}, "WX_APPID WX_APPSECRET -sandbox mp.weixin.qq.com"},
		{"no AppID", map[string]string{"WX_APPID": ""}, "WX_APPID mp.weixin.qq.com"},
		{"no AppSecret", map[string]string{"WX_APPSECRET": ""}, both},
		{"AppID with a space", map[string]string{"WX_APPID": "hunter2 "}, "WX_APPID"},
		{"AppID with a line break", map[string]string{"WX_APPID": "hunter2\n"}, "WX_APPID"},
		{"AppID that is a placeholder", map[string]string{"WX_APPID": "你的AppID"}, "WX_APPID"},
		{"AppSecret with a space", map[string]string{"WX_APPSECRET": "hunter2 hunter2"}, "WX_APPSECRET"},
		{"AppSecret that is a placeholder", map[string]string{"WX_APPSECRET": "你的AppSecret"}, "WX_APPSECRET"},
		{"AppSecret with DEL", map[string]string{"WX_APPSECRET": "hunter2\x7f"}, "WX_APPSECRET"},
		{"AppSecret too long", map[string]string{"WX_APPSECRET": strings.Repeat("hunter2", 100)}, "WX_APPSECRET"},
		{"both", map[string]string{"WX_APPSECRET": "hunter2", "WX_APPSECRET_FILE": "hunter2"}, both},
		{"both, the file readable", map[string]string{"WX_APPSECRET_FILE": file("readable", "hunter2")}, both},
		{"file that is not there", map[string]string{"WX_APPSECRET": "", "WX_APPSECRET_FILE": "hunter2"}, "WX_APPSECRET_FILE"},
		{"file that is a directory", map[string]string{"WX_APPSECRET": "", "WX_APPSECRET_FILE": dir}, "WX_APPSECRET_FILE"},
		{"file that is empty", map[string]string{"WX_APPSECRET": "", "WX_APPSECRET_FILE": file("empty", "\n")}, "WX_APPSECRET_FILE"},
		{"file with two words", map[string]string{"WX_APPSECRET": "", "WX_APPSECRET_FILE": file("words", "hunter2 hunter2")}, "WX_APPSECRET_FILE"},
		{"ADDR without port", map[string]string{"ADDR": "hunter2"}, "ADDR"},
		{"ADDR with an empty port", map[string]string{"ADDR": "hunter2:"}, "ADDR"},
		{"ADDR with a port name", map[string]string{"ADDR": ":hunter2"}, "ADDR"},
		{"ADDR with a port too high", map[string]string{"ADDR": "hunter2:65536"}, "ADDR"},
		{"ADDR that is a URL", map[string]string{"ADDR": "http://hunter2:80"}, "ADDR"},
		{"ADDR with a space", map[string]string{"ADDR": "hunter2 :80"}, "ADDR"},
		{"ADDR, IPv6 without brackets", map[string]string{"ADDR": "::1:80"}, "ADDR"},
		{"base URL without scheme", map[string]string{"WX_BASE_URL": "hunter2"}, "WX_BASE_URL"},
		{"base URL with another scheme", map[string]string{"WX_BASE_URL": "ftp://hunter2"}, "WX_BASE_URL"},
		{"base URL without host", map[string]string{"WX_BASE_URL": "https:///hunter2"}, "WX_BASE_URL"},
		{"base URL with a port alone", map[string]string{"WX_BASE_URL": "https://:443/hunter2"}, "WX_BASE_URL"},
		{"base URL with a password", map[string]string{"WX_BASE_URL": "https://x:hunter2@x"}, "WX_BASE_URL"},
		{"base URL with a query", map[string]string{"WX_BASE_URL": "https://hunter2?x"}, "WX_BASE_URL"},
		{"base URL with a fragment", map[string]string{"WX_BASE_URL": "https://hunter2#x"}, "WX_BASE_URL"},
		{"base URL with a control character", map[string]string{"WX_BASE_URL": "https://hunter2\x01"}, "WX_BASE_URL"},
		{"base URL after a space", map[string]string{"WX_BASE_URL": "https://x, https://hunter2"}, "WX_BASE_URL"},
		{"base URL left out", map[string]string{"WX_BASE_URL": "https://hunter2,"}, "WX_BASE_URL"},
		{"timeout without unit", map[string]string{"WX_TIMEOUT": "5"}, "WX_TIMEOUT"},
		{"no timeout", map[string]string{"WX_TIMEOUT": "0s"}, "WX_TIMEOUT"},
		{"timeout below zero", map[string]string{"WX_TIMEOUT": "-5s"}, "WX_TIMEOUT"},
		{"timeout in words", map[string]string{"WX_TIMEOUT": "hunter2"}, "WX_TIMEOUT"},
		{"none at a time", map[string]string{"MAX_INFLIGHT": "0"}, "MAX_INFLIGHT"},
		{"fewer than none", map[string]string{"MAX_INFLIGHT": "-1"}, "MAX_INFLIGHT"},
		{"a fraction", map[string]string{"MAX_INFLIGHT": "1.5"}, "MAX_INFLIGHT"},
		{"so many words", map[string]string{"MAX_INFLIGHT": "hunter2"}, "MAX_INFLIGHT"},
		{"certificate without key", map[string]string{"TLS_CERT": "hunter2"}, "TLS_CERT TLS_KEY"},
		{"key without certificate", map[string]string{"TLS_KEY": "hunter2"}, "TLS_CERT TLS_KEY"},
		{"all of them", map[string]string{
			"WX_APPID": "hunter2 ", "WX_APPSECRET": "hunter2", "WX_APPSECRET_FILE": "hunter2", "ADDR": "hunter2", "WX_BASE_URL": "hunter2",
			"WX_TIMEOUT": "hunter2", "MAX_INFLIGHT": "hunter2", "TLS_CERT": "hunter2",
		}, "WX_APPID WX_APPSECRET WX_APPSECRET_FILE ADDR WX_BASE_URL WX_TIMEOUT MAX_INFLIGHT TLS_CERT TLS_KEY"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := credentials()
			maps.Copy(env, test.env)
			code, stdout, stderr := runToEnd(t, env)
			if code != 2 || stdout != "" {
				t.Errorf("got exit code %d and %q on standard output, want 2 and nothing", code, stdout)
			}
			for name := range strings.FieldsSeq(test.names) {
				if !strings.Contains(stderr, name) {
					t.Errorf("got %q, want %s in it", stderr, name)
				}
			}
			for name := range env {
				if strings.Contains(stderr, name) && !strings.Contains(test.names, name) {
					t.Errorf("got %q, want nothing of %s, which is good", stderr, name)
				}
			}
			for _, value := range []string{"hunter2", "你的", testSecret, testAppID} {
				if strings.Contains(stderr, value) {
					t.Errorf("got %q, want no value in it", stderr)
				}
			}
		})
	}
}
