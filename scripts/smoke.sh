#!/bin/sh
# Asks a running service what the README asks, and stops at the first wrong answer: ./scripts/smoke.sh [URL]
# Without a URL it asks http://127.0.0.1:8000. Exit status 0: every answer was right. Needs curl.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
url=${1:-http://127.0.0.1:8000}
url=${url%/}
sample=$root/samples/cifar10-helps-cat-2001.png
other=$root/samples/cifar10-helps-deer-2009.png

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

# The answer's text, whatever is in it.
show_answer() {
  [ ! -s "$folder/answer" ] || head -c 2000 "$folder/answer" | tr -cd '[:print:]\n'
  printf '\n'
}

fail() {
  printf 'FAILED  %s: %s\n' "$name" "$*"
  show_answer
  exit 1
}

# check NAME STATUS TYPE TEXT PATH [curl's options]: the answer has that status and content type, and TEXT (a pattern) in it.
check() {
  name=$1 expected="$2 $3" text=$4 path=$5
  shift 5
  : >"$folder/answer"
  found=$(curl --silent --show-error --max-time 60 --output "$folder/answer" --write-out '%{http_code} %{content_type}' \
    "$@" "$url$path" 2>"$folder/error") || fail "no answer from $url$path: $(cat "$folder/error")"
  case $found in
    "$expected" | "$expected;"*) ;;
    *) fail "expected $expected from $url$path, got $found" ;;
  esac
  grep -q -e "$text" "$folder/answer" || fail "expected '$text' in the answer from $url$path"
  printf 'ok      %s\n' "$name"
}

json=application/json
check 'live' 200 $json '"ok"' /livez
check 'ready' 200 $json '"ok"' /readyz
check 'classify, purified' 200 $json '"purifier": *"soap-lc"' '/classify?purifier=soap-lc&top_k=2' --data-binary "@$sample"
check 'classify, as it came' 200 $json '"purifier": *"none"' '/classify?purifier=none' --data-binary "@$sample"
check 'classify a form' 200 $json '"predictions"' /classify --form "image=@$sample"
check 'classify a batch' 200 $json '"items": *\[.*"result": *{.*"result": *{' /classify/batch \
  --form "image=@$sample" --form "image=@$other"
check 'purify' 200 image/png PNG '/purify?purifier=soap-lc' --data-binary "@$sample"
check 'purifiers' 200 $json '"soap-lc"' /purifiers
check 'models' 200 $json '"cifar10"' /models
check 'a file that is no image' 400 application/problem+json '"code": *"not-an-image"' /classify --data-binary 'not an image'
check 'metrics' 200 text/plain '^unperturb_requests_total' /metrics
printf 'Every answer of %s is right.\n' "$url"
