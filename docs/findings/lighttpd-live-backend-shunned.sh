#!/bin/bash
# lighttpd 1.4.69 (Debian 12), mod_proxy with two hosts; seen 2026-11-27.
# A rolling restart: host B refuses one connection and listens again at once, then host A goes down.
# Expected: B is tried, as the only host that is left.
# Seen: one refused connection shuts B out for two to three seconds (disable-time is 1), and nothing brings it back
# earlier. With A down too, every login gets 503 without an attempt, while B answers direct requests.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

p=lighttpd=1.4.69-1
apt-get download "$p" >/dev/null 2>&1 || { echo "$p cannot be had"; exit 2; }
dpkg -x ./*.deb root
export PATH=$t/root/usr/sbin:$PATH
cat >run.py <<'PY'
import http.server, os, random, socket, subprocess, sys, threading, time, urllib.request

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *a):
        pass

def start(port):
    s = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
    threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True).start()
    return s

def stop(s):
    s.shutdown()
    s.server_close()

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def post(port):
    try:
        return opener.open(f'http://127.0.0.1:{port}/', b'{"code":"A"}', 5).status
    except urllib.error.HTTPError as e:
        return e.code

free = []
while len(free) < 3:
    port = random.randrange(15000, 32000)
    try:
        socket.create_server(('127.0.0.1', port)).close()
        free.append(port)
    except OSError:
        pass
front, A, B = free
a, b = start(A), start(B)
with open('lighttpd.conf', 'w') as f:
    f.write(f'''server.document-root = "{os.getcwd()}"
server.bind = "127.0.0.1"
server.port = {front}
server.modules = ("mod_proxy")
proxy.balance = "round-robin"
proxy.server = ("" => (
  ("host" => "127.0.0.1", "port" => {A}, "disable-time" => 1),
  ("host" => "127.0.0.1", "port" => {B}, "disable-time" => 1)))
''')
modules = 'root/usr/lib/lighttpd'
lighttpd = subprocess.Popen(['lighttpd', '-D', '-f', 'lighttpd.conf', '-m', modules], stderr=open('lighttpd.log', 'w'))
try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', front)).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        print(open('lighttpd.log').read())
        sys.exit(2)
    print('both up:          ', *[post(front) for _ in range(4)])
    stop(b)
    print('B restarts:       ', *[post(front) for _ in range(4)])
    b = start(B)
    stop(a)
    began, shunned = time.monotonic(), 0
    while time.monotonic() - began < 5:
        through, direct = post(front), post(B)
        if through == 200:
            break
        if direct == 200:
            shunned += 1
        time.sleep(0.05)
    print(f'B up, A down:      {shunned} times 503 through lighttpd and 200 from B itself')
    print(f'B is used again:   after {time.monotonic() - began:.1f} s, {through}')
finally:
    lighttpd.terminate()
    lighttpd.wait()
sys.exit(0 if shunned > 3 else 1)
PY
timeout 60 python3 run.py
rc=$?
grep -h down lighttpd.log
exit $rc
