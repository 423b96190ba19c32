#!/bin/bash
# HAProxy 2.6.12 (Debian 12), "option abortonclose"; seen 2026-11-27.
# A caller hangs up after one second, while the back end still works on its request.
# Expected: with the option set in the backend section, where the manual allows it, the back end is told, and the
# log says that the caller left.
# Seen: set there, it does nothing at this stage: the back end answers nobody and the log says 200. In a "listen"
# section or in "defaults" it works, and the log says 400 and CH. In a frontend it is refused with a warning.
# Known upstream and fixed in newer branches.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

for p in haproxy=2.6.12-1+deb12u4 liblua5.3-0=5.3.6-2 libopentracing-c-wrapper0=1.1.3-3+b1 libopentracing1=1.6.0-4; do
  apt-get download "$p" >/dev/null 2>&1 || { echo "$p cannot be had"; exit 2; }
done
for p in *.deb; do dpkg -x "$p" root; done
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH

cat >backend.py <<'PY'
import socketserver, sys
class H(socketserver.BaseRequestHandler):
    def handle(self):
        head = self.request.recv(65536)
        if not head:
            return
        path = head.split()[1].decode()
        self.request.settimeout(3)
        try:
            told = self.request.recv(1) == b''
        except TimeoutError:
            told = False
        except ConnectionResetError:
            told = True
        with open('backend.log', 'a') as f:
            print(path[1:], 'told' if told else 'answered', file=f)
        if not told:
            try:
                self.request.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
            except OSError:
                pass
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()
PY
read -r back p1 p2 p3 < <(python3 -c '
import random, socket
free = []
for port in random.sample(range(15000, 32000), 50):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free[:4])')
cat >haproxy.cfg <<CFG
global
  log stdout format raw local0
defaults plain
  mode http
  log global
  option httplog
  timeout connect 5s
  timeout client 30s
  timeout server 30s
defaults abort from plain
  option abortonclose
frontend front from plain
  bind 127.0.0.1:$p1
  default_backend in_backend
backend in_backend from plain
  option abortonclose
  server s 127.0.0.1:$back
listen in_listen from plain
  bind 127.0.0.1:$p2
  option abortonclose
  server s 127.0.0.1:$back
frontend front2 from abort
  bind 127.0.0.1:$p3
  default_backend in_defaults
backend in_defaults from abort
  server s 127.0.0.1:$back
CFG
timeout 60 python3 backend.py "$back" &
timeout 60 root/usr/sbin/haproxy -db -f haproxy.cfg >haproxy.log 2>&1 &
up() {
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo "nothing listens on port $1"; exit 2
}
up "$back"
up "$p3"

curl -s --noproxy '*' -m 1 -d '{"code":"A"}' "http://127.0.0.1:$p1/in_backend" &
curl -s --noproxy '*' -m 1 -d '{"code":"B"}' "http://127.0.0.1:$p2/in_listen" &
curl -s --noproxy '*' -m 1 -d '{"code":"C"}' "http://127.0.0.1:$p3/in_defaults" &
sleep 5
for w in in_backend in_listen in_defaults; do
  echo "$w: back end $(awk -v w=$w '$1 == w {print $2}' backend.log)," \
    "log $(sed -n "s,.* \([0-9]*\) [0-9]* - - \(..\)-- .*/$w .*,\1 \2,p" haproxy.log)"
done | tee seen
[ "$(cat seen)" = "in_backend: back end answered, log 200 --
in_listen: back end told, log 400 CH
in_defaults: back end told, log 400 CH" ]
