// Wxopenid is the back end of WeChat mini program login: it exchanges the code of wx.login for the
// user's openid, by asking WeChat's jscode2session.
//
//	POST /openid   {"code":"…"} → 200 {"openid":"…"}, or a status and {"error":"…","message":"…"}
//	GET /healthz   200 {"status":"ok"}
//
// Settings are environment variables, or lines of a file .env: WX_APPID and WX_APPSECRET, and others that have
// defaults. wxopenid -h lists them, and the flags.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // without a reader of the log, lines are lost and logins go on
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	// Without these 8 MiB, which are never used and so take no memory, the little that is in use
	// would be collected far too often.
	ballast := make([]byte, 8<<20)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	runtime.KeepAlive(ballast)
	os.Exit(code)
}

const usage = `Usage: wxopenid [flag]. Without a flag it starts the service. The flags:
  -sandbox  run against an embedded fake WeChat; no AppID or AppSecret needed
  -check    ask WeChat whether it accepts each AppID and its AppSecret, print the result, exit
  -healthy  ask the service here, by its ADDR and TLS_CERT, whether it is up, exit 0 if so, else 1
  -version  print the version, the revision and Go's version, exit
`

// run is the program, until ctx is done. It returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flag := strings.Replace(strings.Join(args, " "), "--", "-", 1)
	switch {
	case len(args) == 0, flag == "-sandbox", flag == "-check":
	case flag == "-healthy":
		return healthy(getenv, stderr)
	case flag == "-version":
		fmt.Fprintln(stdout, versionLine())
		return 0
	case flag == "-h", flag == "-help":
		fmt.Fprint(stdout, usage+settingsHelp)
		return 0
	default:
		fmt.Fprintln(stderr, "wxopenid takes one flag, such as -sandbox, and no other word: see wxopenid -h.")
		return 2
	}
	c, err := loadConfig(getenv, flag == "-sandbox")
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	log.SetOutput(io.Discard) // here net/http quotes unexpected bytes from WeChat, which may hold a session_key
	logger := newLogger(stderr, c)
	if flag == "-check" {
		return check(ctx, c, logger, stdout, stderr)
	}
	l, err := listen(ctx, c, logger)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	if err := serve(ctx, c, l, logger, stdout); err != nil {
		logger.Error("stopped", "cause", err.Error())
		return 1
	}
	logger.Info("stopped")
	return 0
}

// versionLine is the version of the module, the revision if there is one, Go's version and the system.
func versionLine() string {
	info, _ := debug.ReadBuildInfo()
	version, revision := cmp.Or(info.Main.Version, "(devel)"), ""
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			revision = fmt.Sprintf(" %.12s", setting.Value)
		}
	}
	return fmt.Sprintf("wxopenid %s%s (%s %s/%s)", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// newLogger returns the log: text on a terminal, JSON elsewhere. It begins with what there is to say of the settings.
func newLogger(stderr io.Writer, c config) *slog.Logger {
	logger := slog.New(slog.NewJSONHandler(stderr, nil))
	file, _ := stderr.(*os.File)
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	if len(c.fromFile) > 0 {
		logger.Info("settings from .env", "names", strings.Join(c.fromFile, " "))
	}
	for _, warning := range c.warnings {
		logger.Warn(warning)
	}
	return logger
}

// check exchanges a made-up code with each AppID. WeChat looks at the AppID and AppSecret first, so a refusal of the
// code means that both are right. A sandbox refuses this code with 40029, too.
func check(ctx context.Context, c config, logger *slog.Logger, stdout, stderr io.Writer) int {
	if _, err := newCertificate(c, logger); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	wx, exitCode := newClient(c, c.baseURLs, slog.New(slog.DiscardHandler)), 0
	for _, appID := range c.appIDs {
		_, f := wx.openID(ctx, appID, "sandbox:errcode=40029")
		switch {
		case f == nil:
			f = &failure{cause: "an openid for a made-up code: this is not WeChat, so check WX_BASE_URL"}
		case f.errcode == 40029 || f.errcode == 40163:
			fmt.Fprintf(stdout, "WeChat accepts the AppID %s and its AppSecret.\n", appID)
			continue
		case ctx.Err() != nil:
			fmt.Fprintln(stderr, "Stopped before WeChat answered: run -check again.")
			return 1
		}
		fmt.Fprintf(stderr, "AppID %s: %s.\n", appID, f.cause)
		exitCode = 1
	}
	return exitCode
}

// healthy asks /healthz on this machine, whatever name is in the certificate.
func healthy(getenv func(string) string, stderr io.Writer) int {
	s := newSettings(getenv)
	addr, scheme := s.addr(false), "http"
	if s.value("TLS_CERT") != "" {
		scheme = "https"
	}
	if problem := cmp.Or(s.problems[dotEnv], s.problems["ADDR"], s.problems["TLS_CERT"]); problem != "" {
		fmt.Fprintln(stderr, problem)
		return 1
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	resp, err := client.Get(scheme + "://" + addr + "/healthz")
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return 0
		}
		err = fmt.Errorf("another program is there, and says %s", resp.Status)
	}
	fmt.Fprintf(stderr, "wxopenid does not answer at ADDR (%v): start it, or use its ADDR and TLS_CERT.\n", said(err))
	return 1
}
