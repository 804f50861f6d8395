# SPDX-License-Identifier: Apache-2.0
# Sourced by up.sh and second.sh: who is who in the cluster. One authority; the keys are elliptic because RSA takes
# seconds here.
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

# certificate NAME SUBJECT ALTERNATIVE-NAMES
certificate() {
  openssl req "${key[@]}" -subj "$2" -keyout "$S/pki/$1.key" -out "$S/pki/$1.csr"
  openssl x509 -req -in "$S/pki/$1.csr" -CA "$S/pki/ca.crt" -CAkey "$S/pki/ca.key" -CAcreateserial -days 7 \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3") -out "$S/pki/$1.crt"
}

# kubeconfig NAME: of whom a certificate was made for
kubeconfig() {
  cat >"$S/$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "$(cat "$S/server")", certificate-authority: $S/pki/ca.crt}}]
users: [{name: $1, user: {client-certificate: $S/pki/$1.crt, client-key: $S/pki/$1.key}}]
contexts: [{name: test, context: {cluster: test, user: $1}}]
current-context: test
K
}
