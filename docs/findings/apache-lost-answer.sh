#!/bin/bash
# Apache httpd 2.4.71 (Debian 12), mod_proxy_http; seen 2026-11-27.
# A back end reads a POST and dies before it answers.
# Expected: the caller gets 502, and the back end sees the POST once.
# Seen: 502 only if it is the first request on the caller's connection. Later on a kept connection Apache closes
# it without a byte. curl takes that for an idle connection that timed out and sends the POST again: the back end
# sees the same login code twice. The access log shows 502 each time.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

for p in apache2-bin=2.4.71-1~deb12u1 libapr1=1.7.2-3+deb12u1 libaprutil1=1.6.3-1+deb12u1; do
  apt-get download "$p" >/dev/null 2>&1 || { echo "$p cannot be had"; exit 2; }
done
for p in *.deb; do dpkg -x "$p" root; done
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$t/$LD_LIBRARY_PATH

cat >backend.py <<'PY'
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        with open('backend.log', 'ab') as f:
            f.write(body + b'\n')
        if self.path == '/dies':
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header('Content-Length', '2')
        self.end_headers()
        self.wfile.write(b'ok')
    def log_message(self, *a):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()
PY
cat >caller.py <<'PY'
import http.client, sys
def post(c, path):
    c.request('POST', path, '{"code":"raw"}')
    try:
        r = c.getresponse()
        r.read()
        return str(r.status)
    except http.client.RemoteDisconnected:
        return 'closed'
c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=10)
print(post(c, '/dies'), end=' ')
c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=10)
print(post(c, '/lives'), post(c, '/dies'))
PY
read -r front back < <(python3 -c '
import random, socket
free = []
for port in random.sample(range(15000, 32000), 50):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free[:2])')
m=$t/root/usr/lib/apache2/modules
cat >httpd.conf <<CONF
ServerRoot $t
DefaultRuntimeDir $t
PidFile $t/httpd.pid
ServerName localhost
Listen 127.0.0.1:$front
User nobody
Group nogroup
LoadModule mpm_event_module $m/mod_mpm_event.so
LoadModule authz_core_module $m/mod_authz_core.so
LoadModule proxy_module $m/mod_proxy.so
LoadModule proxy_http_module $m/mod_proxy_http.so
ErrorLog $t/error.log
LogFormat "%r -> %>s" short
CustomLog $t/access.log short
ProxyPass / http://127.0.0.1:$back/
CONF
timeout 60 python3 backend.py "$back" &
timeout 60 root/usr/sbin/apache2 -f "$t/httpd.conf" -DFOREGROUND &
up() {
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo "nothing listens on port $1"; exit 2
}
up "$back"
up "$front"

read -r first lives kept < <(python3 caller.py "$front")
echo "first request on a connection:            $first"
echo "after a $lives on the same connection:       $kept"
curl -s --noproxy '*' -o /dev/null -d '{"code":"A"}' "http://127.0.0.1:$front/lives" \
  --next -s --noproxy '*' -o /dev/null -d '{"code":"B"}' "http://127.0.0.1:$front/dies"
twice=$(grep -c '"B"' backend.log)
echo "POSTs of one curl that reached the back end: $twice"
cat access.log
[ "$first $kept $twice" = "502 closed 2" ]
