#!/bin/sh
# Measures the service on Linux: sh measure/measure.sh bench|cold|flood|rolling|failover [BINARY...]
# The service is built from here, unless SERVICE names its binary. bench and cold compare it with the leanest net/http
# loop, and with each BINARY. Relative paths begin at the root of the repository.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d) failed=0 GROUP=''
front=$((20000 + $$ % 4000 * 3)) a=$((front + 1)) b=$((front + 2)) # below the ports of outgoing connections

end() { { kill -KILL "$@"; wait "$@"; } 2>>"$dir/log" || true; }

# clean leaves no process, cgroup or directory behind. What measure has started dies with it.
clean() {
  trap '' INT TERM; jobs -p >"$dir/jobs"
  end $(cat "$dir/jobs")
  while [ -d "$GROUP" ] && ! rmdir "$GROUP" 2>>"$dir/log"; do sleep 0.1; done
  rm -rf "$dir"
}
trap clean EXIT
trap 'trap "" INT TERM; exit 130' INT TERM

# Both work in the background: a signal has to wait for the end of a command in the foreground.
start() { "$@" >>"$dir/log" 2>&1 & pid=$!; }
measure() { name=$1; shift; "$dir/$name" "$SERVICE" "$dir/lean" "$@" & wait $! || failed=1; }
promise() { if [ "$1" = 1 ]; then echo "  held: $2"; else echo "  NOT HELD: $2"; failed=1; fi; }

# limit CONTROLLER NUMBER: makes a cgroup for what measure starts.
limit() {
  parent=/sys/fs/cgroup file=$1.max
  if [ ! -e $parent/cgroup.controllers ]; then # version 1
    parent=$parent/$1
    case $1 in cpu) file=cpu.cfs_quota_us ;; memory) file=memory.limit_in_bytes ;; esac
  fi
  export GROUP="$parent/measure-$$"
  mkdir "$GROUP" && echo "$2" >"$GROUP/$file" && return
  echo "Skipped: no cgroup with a limit of $1 can be made here. It takes root."
  return 1
}

# up URL: waits for an answer.
up() {
  timeout 20 sh -c "until curl -ks -o '$dir/answer' $1; do sleep 0.1; done" && return
  tail -n 5 "$dir/log"
  exit 1
}

# load URL RATE SECONDS CODE
load() {
  printf '{"code":"%s"}' "$4" >"$dir/body"
  echo "POST $1/openid" >"$dir/target"
  start "$dir/vegeta" attack -insecure -targets "$dir/target" -body "$dir/body" -rate "$2" -duration "$3s" \
    -output "$dir/results"; load=$pid
}

# report SINCE WORDS: promises an openid to each login that began after that, in ns.
report() {
  wait $load
  "$dir/vegeta" report "$dir/results"
  lost=$("$dir/vegeta" encode -to csv "$dir/results" | awk -F , -v since="$1" '$1 > since && $2 != 200' | wc -l)
  promise $((lost == 0)) "$2"
}

copy() { start env ADDR="127.0.0.1:$1" "$SERVICE" -sandbox; up "http://127.0.0.1:$1/healthz"; }
stop() { kill "$1"; wait "$1" || promise 0 'a copy exits with 0'; }

# behind SCHEME BALANCER...: restarts two copies in turn behind a load balancer.
behind() {
  url=$1://127.0.0.1:$front; shift
  command -v "$1" >"$dir/path" || { echo "$1 is not on PATH: skipped"; return; }
  echo "Two copies, restarted six times each, behind $1:"
  copy $a; first=$pid; copy $b; second=$pid
  start "$@"; balancer=$pid
  up "$url/healthz"
  load "$url" 400 30 sandbox:delay=50ms
  for turn in 1 2 3 4 5 6; do
    sleep 1; stop $first; copy $a; first=$pid
    sleep 1; stop $second; copy $b; second=$pid
  done
  report 0 'no login is lost'
  end $first $second $balancer
}

rolling() {
  { echo "daemon off; master_process off; pid $dir/pid; events { worker_connections 4096; } http {"
    sed -E -e '/listen \[::\]|limit_req zone/d' -e "s/listen 443 /listen 127.0.0.1:$front /; s|/var/log/nginx|$dir|" \
      -e "s|(ssl_certificate(_key)? +).*;|\1$SSL_CERT_FILE;|; s/:2020/:$a/; s/:2021/:$b/" deploy/nginx.conf
    echo '}'; } >"$dir/nginx.conf"
  behind https nginx -e stderr -c "$dir/nginx.conf"
  printf '%s\n' defaults ' mode http' ' timeout connect 2s' ' timeout client 30s' ' timeout server 8s' \
    ' option redispatch 1' 'listen wxopenid' " bind 127.0.0.1:$front" " server a 127.0.0.1:$a" \
    " server b 127.0.0.1:$b" >"$dir/haproxy.cfg"
  behind http haproxy -db -f "$dir/haproxy.cfg"
  [ -e deploy/Caddyfile ] || { echo 'deploy/Caddyfile is not there: skipped'; return; }
  sed "s|api.example.com|http://127.0.0.1:$front|; s/:2020/:$a/; s/:2021/:$b/" deploy/Caddyfile >"$dir/Caddyfile"
  export CADDY_ADMIN="127.0.0.1:$((front + 12000))" XDG_DATA_HOME="$dir" XDG_CONFIG_HOME="$dir"
  behind http caddy run --adapter caddyfile --config "$dir/Caddyfile"
}

# without SIGNAL: sends it to the first of two base URLs under load.
without() {
  echo "SIG$1 to the first of two base URLs after 3 s:"
  start env ADDR="127.0.0.1:$b" "$dir/wechat"; first=$pid
  up "https://127.0.0.1:$b"
  start env ADDR="127.0.0.1:$front" WX_BASE_URL="https://127.0.0.1:$b,$WX_BASE_URL" "$SERVICE"; service=$pid
  up "http://127.0.0.1:$front/healthz"
  load "http://127.0.0.1:$front" 300 40 20ms
  sleep 3; kill -"$1" $first; since=$(date +%s%N)
  report $((since + 500000000)) 'no login is lost that began half a second later'
  end $first $service
}

build() { CGO_ENABLED=0 go build -C "$1" -trimpath -ldflags='-s -w' -o "$dir/$2" .; } # as make build does

program=${1:-}
case $program in
  bench | cold | flood) ;;
  rolling | failover) GOBIN=$dir go install github.com/tsenart/vegeta/v12@v12.13.0 ;;
  *) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
esac
shift
[ "${SERVICE:-}" ] || build . wxopenid
build measure measure
for name in wechat lean bench burst starved flood; do ln -s measure "$dir/$name"; done
export SERVICE="${SERVICE:-$dir/wxopenid}"
export WX_APPID=wx0123456789abcdef WX_APPSECRET=0123456789abcdef0123456789abcdef WX_BASE_URL="https://127.0.0.1:$a"
export SSL_CERT_FILE="$dir/wechat.pem" # the service trusts it, and the fake WeChat has it
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
  -keyout "$SSL_CERT_FILE" -out "$SSL_CERT_FILE" 2>>"$dir/log"
[ $program = rolling ] || { start env ADDR="127.0.0.1:$a" "$dir/wechat"; up "$WX_BASE_URL"; }
manifest=deploy/kubernetes.yaml
case $program in
  bench) measure bench "$@" ;;
  cold) measure burst "$@"; if limit cpu 20000; then measure starved "$@"; fi ;; # µs of each 100,000
  flood)
    export $(sed -nE 's/.*\{name: (GOMEMLIMIT|MAX_[A-Z]+), value: "?([0-9A-Za-z]+).*/\1=\2/p' "$manifest")
    memory=$(sed -n 's/.*limits: {.*memory: \([0-9]*\)Mi.*/\1/p' "$manifest")
    if limit memory $((memory << 20)); then measure flood; fi ;;
  rolling) rolling ;;
  failover) without KILL; without STOP ;;
esac
exit $failed
