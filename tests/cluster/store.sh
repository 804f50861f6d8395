#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Changes an object where the API server stores it, behind its back: the only way to what an older schema let in.
#
#   store.sh KEY OLD NEW     replaces each OLD in what lies under KEY; OLD is a basic regular expression
#   store.sh KEY             puts the JSON of standard input there, as an older API server may have done
. "$(dirname "$0")/environment.sh"
alone
alive etcd || die "no etcd of a cluster in $S"
inside=() port=2379
[ ! -e "$S/network" ] || inside=(nsenter --net="/run/netns/$(cat "$S/network")")
[ ! -s "$S/ports" ] || read -r _ port _ <"$S/ports"
# etcd's gateway: keys and values are base64 (https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/).
etcd() { "${inside[@]}" curl -fsS "http://127.0.0.1:$port/v3/kv/$1" -d "$2"; }

key=$(printf %s "$1" | base64 -w0)
put() { etcd put "{\"key\":\"$key\",\"value\":\"$(base64 -w0)\"}" >/dev/null; }
if [ $# = 1 ]; then
  put
  exit
fi
old=$(etcd range "{\"key\":\"$key\"}" | sed -n 's/.*"value":"\([^"]*\)".*/\1/p' | base64 -d)
new=$(sed "s/$2/$3/g" <<<"$old")
[ -n "$old" ] || die "nothing lies under $1"
[ "$old" != "$new" ] || die "$2 is not in what lies under $1"
printf %s "$new" | put
