package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// load loads settings, NAME=value|NAME=value, over those of two AppIDs. @NAME is the content of a file, not its name.
func load(t *testing.T, settings string, sandbox bool) (config, string) {
	env := several()
	for setting := range strings.SplitSeq(settings, "|") {
		name, value, _ := strings.Cut(setting, "=")
		if name == "@WX_APPSECRET_FILE" {
			file := filepath.Join(t.TempDir(), "hunter2 密钥")
			writeFile(file, value)
			name, value, env["WX_APPSECRET"] = name[1:], file, ""
		}
		env[name] = value
	}
	c, err := loadConfig(func(name string) string { return env[name] }, sandbox)
	return c, strings.TrimPrefix(fmt.Sprint(err), "<nil>")
}

func urls(list string) (urls []*url.URL) {
	for text := range strings.SplitSeq(list, ",") {
		urls = append(urls, must(url.Parse(text)))
	}
	return urls
}

func TestSettings(t *testing.T) {
	none := func(*config) {}
	swapped := func(c *config) { c.appSecrets = []string{otherSecret, testSecret} }
	asking := func(list string) func(*config) { return func(c *config) { c.baseURLs = urls(list) } }
	for settings, differs := range map[string]func(*config){ // from the defaults
		"WX_APPSECRET=" + otherSecret + " , " + testSecret:                                swapped,
		"@WX_APPSECRET_FILE=\ufeff\t" + otherSecret + "\r\n \n\ufeff" + testSecret + "\n": swapped,
		"@WX_APPSECRET_FILE=" + otherSecret + ", " + testSecret:                           swapped,

		"ADDR=[::1]:65535":             func(c *config) { c.addr = "[::1]:65535" },
		"WX_TIMEOUT=60m":               func(c *config) { c.timeout = time.Hour },
		"MAX_INFLIGHT=1|MAX_CONNS=2":   func(c *config) { c.maxInflight, c.maxConns = 1, 2 },
		"TLS_CERT=证\u3000 1|TLS_KEY=k": func(c *config) { c.tlsCert, c.tlsKey = "证\u3000 1", "k" },
		"WX_BASE_URL=x|HTTPS_PROXY=:":  func(c *config) { c.sandbox, c.addr, c.baseURLs = true, "127.0.0.1:2020", nil },

		"WX_BASE_URL=https://x:8443/a/ , HTTPS://[2001:db8::1]/b": asking("https://x:8443/a/,https://[2001:db8::1]/b"),
		"WX_BASE_URL=http://127.1.2.3,http://localhost,https://[::1]|HTTP_PROXY=x:y|HTTPS_PROXY=x:y": asking(
			"http://127.1.2.3,http://localhost,https://[::1]"),
		strings.Join(settingNames[2:], "=|") + "=":           none,
		"ALL_PROXY=x|https_proxy=socks5h://u:p@127.0.0.1:1/": none,
		"ALL_PROXY=x|HTTPS_PROXY=127.0.0.1:1|HTTP_PROXY=x:y": none,
	} {
		want := config{appIDs: []string{testAppID, otherAppID}, appSecrets: []string{testSecret, otherSecret},
			addr: ":2020", baseURLs: urls(wechatURLs), timeout: 5 * time.Second, maxInflight: 1024, maxConns: 10_000}
		differs(&want)
		got, problems := load(t, settings, want.sandbox)
		same(t, settings, []any{got, problems}, []any{want, ""})
	}
}

// TestOddSettings has what is said, behind the variable, and settings of which the last is bad, or gives a warning. The
// values hold "hunter2", which is never to be printed.
func TestOddSettings(t *testing.T) {
	for text, list := range map[string][]string{
		"is not set: set it, or WX_APPSECRET_FILE to a file that holds it, or try it with -sandbox…": {"WX_APPSECRET="},

		"and WX_APPSECRET_FILE are both set: remove one of them": {"WX_APPSECRET_FILE=hunter2|WX_APPSECRET=hunter2"},
		"is not plain ASCII text: replace a placeholder by the real value, and full-width ：， by : and ,": {
			"WX_APPID=你的AppID", "ADDR=：2020"},
		"holds an invisible character: type it anew": {"WX_APPID=hunter2\u200bx", "WX_APPSECRET=\ufeffhunter2",
			"ADDR=:1\u00a0", "TLS_KEY=x|TLS_CERT=hunter2\x7f"},
		"has a comment behind it: put the comment on a line of its own": {"WX_APPID=hunter2 # my app, x",
			"WX_APPSECRET=hunter2, # x", "WX_TIMEOUT=5s\t#hunter2"},
		"holds ${…}, which nothing has replaced: write the value itself": {"TLS_KEY=x|TLS_CERT=${hunter2}"},
		"holds white space, a space or a line break: remove it":          {"WX_APPID=hunter2 x", "ADDR=hunter2\n:1"},
		"ends in a Windows line end (CR): save the file that it comes from with LF line ends": {"MAX_CONNS=\r",
			"WX_APPSECRET=\"hunter2\"\r", "TLS_KEY=x|TLS_CERT=hunter2\r\n", "HTTPS_PROXY=http://hunter2:1\r"},
		"has quotes around it: remove them": {`WX_APPSECRET="hunter2"`, "WX_APPID=“hunter2”", "ADDR=`hunter2`",
			"TLS_KEY=x|TLS_CERT='hunter2'"},
		"cannot be read (…): name a file that this user may read":                       {"WX_APPSECRET=|WX_APPSECRET_FILE=hunter2"},
		"names a file that is empty: put the AppSecret into it":                         {"@WX_APPSECRET_FILE= \r\n\n"},
		"names a file that has quotes around it: remove them":                           {"@WX_APPSECRET_FILE=\"hunter2\"\n"},
		"names a file that has an empty entry: write a value there, …":                  {"@WX_APPSECRET_FILE=hunter2,"},
		"names a file in UTF-16: save it as UTF-8":                                      {"@WX_APPSECRET_FILE=\xff\xfeh\x00u\x00"},
		"names a file that says WX_APPSECRET: the file has to hold the AppSecret alone": {"@WX_APPSECRET_FILE=WX_APPSECRET=hunter2\n"},

		"holds an AppSecret: write the AppID there, and the AppSecret into WX_APPSECRET": {"WX_APPID=hunter2, " + otherSecret},
		"holds the same AppID twice: write each once":                                    {"WX_APPID=hunter2 ,hunter2"},
		"has another number of entries than WX_APPID (1 and 2): write one for each, in order": {
			"@WX_APPSECRET_FILE=hunter2"},
		"has another number of entries than WX_APPID (3 and 2): …": {"WX_APPSECRET=a,b,hunter2"},
		"has an empty entry: write a value there, and no comma at the end": {"WX_APPID=a,,b", "WX_APPSECRET=hunter2, ",
			"WX_BASE_URL=,https://hunter2"},
		"is not a listen address: write host:port or :port, with a port up to 65535, as in :2020": {"ADDR=hunter2",
			"ADDR=:hunter2", "ADDR=hunter2:65536"},
		"has no unit: write 5s or 800ms": {"WX_TIMEOUT=5"},
		"is not a time above zero and up to 1h: write 5s or 800ms": {"WX_TIMEOUT=5sec", "WX_TIMEOUT=hunter2",
			"WX_TIMEOUT=0s", "WX_TIMEOUT=1h1ns"},
		"is not a whole number above zero: write digits only, as in 10…":   {"MAX_INFLIGHT=0", "MAX_CONNS=10_000"},
		"and TLS_KEY belong together: set both to serve HTTPS, or neither": {"TLS_CERT=x", "TLS_KEY=x|TLS_CERT="},

		"holds the path of the API: leave /sns/jscode2session out, …":   {"WX_BASE_URL=https://x/sns/jscode2session"},
		"has a port that does not exist: the port has to be 1 to 65535": {"WX_BASE_URL=https://hunter2:65536"},
		"is not a list of base URLs: write https://host or https://host/prefix, with commas": {"WX_BASE_URL=hunter2",
			"WX_BASE_URL=ftp://hunter2", "WX_BASE_URL=https://:443/hunter2", "WX_BASE_URL=https://x:hunter2@x",
			"WX_BASE_URL=https://hunter2?x"},
		"is not the URL of a proxy: write http://host:port or socks5://host:port, and in a password %25 for %, %23…": {
			"HTTPS_PROXY=http://u:hunter2%@x:80", "HTTPS_PROXY=http://u:77#hunter2@x:80", "HTTPS_PROXY=:7890x",
			"HTTPS_PROXY=http://u:77?hunter2@x:80", "HTTPS_PROXY=hunter2:", "HTTPS_PROXY=hunter2:70000",
			"HTTPS_PROXY=socks4://hunter2:1", "https_proxy=http:/hunter2", "HTTPS_PROXY=http://hunter2:1/x",
			"WX_BASE_URL=http://192.0.2.1|HTTP_PROXY=socks://hunter2:1"},
		", number 2, does not look like an AppID (wx and 16 of 0-9a-f): copy it again from " + console + " (warning)": {
			"WX_APPID=" + testAppID + ",wx0123456789ABCDEF"},
		", number 2, does not look like an AppSecret (32 of 0-9a-f): copy it again (warning)": {
			"@WX_APPSECRET_FILE=" + testSecret + "\nhunter2",
			"WX_APPSECRET=" + testSecret + ",0123456789ABCDEF0123456789ABCDEF"},
		" does not look like an AppSecret (32 of 0-9a-f): copy it again (warning)": {
			"WX_APPID=" + testAppID + "|WX_APPSECRET=hunter2"},
		": the AppSecret travels unencrypted to 127.0.0.1.x:80: write https (warning)": {
			"WX_BASE_URL=http://127.0.0.1.x:80/a,https://x"},
		" is used by curl, but not here: set HTTPS_PROXY (warning)": {"all_proxy=x|ALL_PROXY="},
	} {
		for _, settings := range list {
			name, _, _ := strings.Cut(settings[strings.LastIndex(settings, "|")+1:], "=")
			c, got := load(t, settings, false)
			if got == "" && len(c.warnings) > 0 {
				got = strings.Join(c.warnings, "\n") + " (warning)"
			}
			for _, no := range []string{"\n", "hunter2", "你的", "/tmp", testSecret, otherSecret, testAppID, otherAppID} {
				same(t, got, strings.Contains(got, no), false)
			}
			like(t, got, strings.TrimPrefix(name, "@")+"…"+text)
		}
	}
}

func TestBadSettingsAllAtOnce(t *testing.T) {
	names := settingNames[:10] // the proxies are looked at where the base URLs are good
	_, got := load(t, strings.Join(names, "=\x01|")+"=\x01", false)
	same(t, got, strings.Count(got, "\n"), len(names)-1) // one line of each
}

// TestDotEnv has a file .env in a folder of its own, so it cannot run beside other tests.
func TestDotEnv(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range settingNames {
		t.Setenv(name, "") // until the test ends, since that of a proxy is set
	}
	const bad = " is not written as NAME=value in line 2 of .env: write "
	for _, test := range []struct {
		content string
		env     map[string]string
		want    string // settings from the file, or what is wrong with it
	}{
		{content: "WX_APPID=wx1\n\n# ADDR=:2\n#ADDR: x\nADDR=:1", want: "WX_APPID=wx1 ADDR=:1"},
		{content: " export  ADDR = :1\t\n\tSET WX_TIMEOUT\t=2s", want: "ADDR=:1 WX_TIMEOUT=2s"},
		{content: "\ufeffADDR=:1\r\n\ufeffWX_TIMEOUT=\ufeff'2s'\r\n", want: "ADDR=:1 WX_TIMEOUT=2s"},
		{content: "ADDR=':1'\nWX_TIMEOUT = \"2s\" \nNO_PROXY=\"'a'\"", want: "ADDR=:1 WX_TIMEOUT=2s NO_PROXY='a'"},
		{content: "ADDR=\":1'", want: "ADDR=\":1'"},
		{content: "ADDR=:1 # x\nWX_TIMEOUT=\"2s\" # \"x\"\nNO_PROXY='a #b'\nHTTP_PROXY=a#b\nMAX_CONNS= # 5",
			want: "ADDR=:1 WX_TIMEOUT=2s HTTP_PROXY=a#b NO_PROXY=a #b"},
		{content: `NO_PROXY=$HOME\n${X}`, want: `NO_PROXY=$HOME\n${X}`},
		{content: "ADDR=:1\nADDR=:2\nWX_TIMEOUT=2s\nWX_TIMEOUT=", want: "ADDR=:2"},
		{content: "https_proxy=a:1\nHttp_Proxy=b:1\nALL_PROXY=d:1", want: "HTTPS_PROXY=a:1 HTTP_PROXY=b:1"},
		{content: "K=\"---\nM= ADDR: x\n---\"\nWX_APPIDS: x\nADDR.x: x\n{ADDR: 1}\nADDR=:1\naddr=:2", want: "ADDR=:1"},
		{content: "ADDR=:1\nHTTPS_PROXY=a:1\nWX_TIMEOUT=2s", want: "WX_TIMEOUT=2s",
			env: map[string]string{"ADDR": ":2", "https_proxy": "b:1", "WX_TIMEOUT": "", "wx_timeout": "9s"}},
		{content: "ADDR: x\nWX_BASE_URL=x\nHTTPS_PROXY=x", env: credentials()},
		{content: "X: 1\nMAX_CONNS: hunter2", want: "MAX_CONNS" + bad + "MAX_CONNS=value"},
		{content: "KEY=\"---\nexport http_proxy hunter2", want: "HTTP_PROXY" + bad + "HTTP_PROXY=value"},
		{content: "\xff\xfeA\x00D\x00D\x00R\x00", want: ".env is in UTF-16: save it as UTF-8"},
	} {
		writeFile(".env", test.content)
		s, got := newSettings(func(name string) string { return test.env[name] }), []string(nil)
		for _, name := range settingNames {
			if value := s.get(name); value != test.env[name] {
				got = append(got, name+"="+value)
			}
		}
		got = slices.AppendSeq(got, maps.Values(s.problems))
		same(t, test.content, strings.Join(got, " "), test.want)
	}
}

// TestDotEnvInUse has a sandbox without a setting, and a process, since net/http reads the proxy once.
func TestDotEnvInUse(t *testing.T) {
	t.Chdir(t.TempDir())
	p := startProgram(t, map[string]string{"WX_APPID": ""}, "-sandbox")
	same(t, "status", post(t, p.url+"/openid", `{"code":"x"}`).status, 200)
	same(t, p.log.String(), strings.Count(p.log.String(), `"level":"WARN"`), 1) // that it is a sandbox
	proxy := newWeChat(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	writeFile(".env", "WX_APPID="+testAppID+"\nWX_APPSECRET=odd\nWX_BASE_URL=https://x.invalid\nhttps_proxy="+proxy)
	p = startProcess(t, map[string]string{"WX_APPID": ""}, "")
	post(t, p.url+"/openid", `{"code":"x"}`)
	p.stop()
	like(t, p.log.String(), `…"settings from .env","names":"WX_APPID WX_APPSECRET WX_BASE_URL HTTPS_PROXY"}…"WARN",`+
		`"msg":"WX_APPSECRET does not look like …"msg":"listening"…the proxy `+strings.TrimPrefix(proxy, "http://")+
		" gives no connection to x.invalid:443 (status 403): …")
}
