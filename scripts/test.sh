#!/usr/bin/env bash
# Runs every test of the project, after installing what the tests need and the
# machine lacks (Debian packages, as root or with sudo). Needs only Go and git.
#
#	scripts/test.sh                 all suites
#	scripts/test.sh unit caddy      only these; nothing is checked against the lists then
#
# With CI=true a skipped test is a failure. KEEP_RAW=DIR keeps the raw events of
# go test there. The last line is "N passed, N failed".
#
# Never add -short or -trimpath: caddytest skips its tests silently under both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A suite is a name and a command. Packages that start a Caddy run one at a
# time (-p 1), because caddytest always takes the same ports. -count=1 lets no
# result come from the cache.
suites=(
	"structure  go test -json -count=1 -timeout 5m ."
	"unit       packages=\$(go list ./... | grep -vE '/caddy-billing-portal(/(caddymodule|cmd|e2e)(/.*)?)?\$'); CGO_ENABLED=1 go test -json -count=1 -race -timeout 20m \$packages"
	"noguard    go test -json -count=1 -timeout 5m -tags portal_test_noguard ./portalcore/session"
	"caddy      go test -json -count=1 -p 1 -timeout 20m ./caddymodule/... ./cmd/..."
	"e2e        go test -json -count=1 -p 1 -timeout 20m ./e2e/..."
	"tools      go -C tools test -json -count=1 -timeout 20m ./..."
	"vet        go vet ./... && go -C tools vet ./... && unformatted=\$(gofmt -l .) && if [ -n \"\$unformatted\" ]; then echo \"gofmt -w is due for: \$unformatted\"; exit 1; fi"
)

case " $(go env GOFLAGS) " in
*-trimpath* | *-short*)
	echo "GOFLAGS has -trimpath or -short, under which Caddy's tests are skipped silently: take it out" >&2
	exit 1
	;;
esac

# install_missing installs the Debian packages whose command or file is missing.
install_missing() {
	local missing=()
	[ -n "$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)" ] || missing+=(chromium)
	[ -n "$(command -v pdftotext || true)" ] || missing+=(poppler-utils)
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
	[ -n "$(command -v gcc || true)" ] || missing+=(gcc libc6-dev) # the race detector links with it
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
	# These are in sbin, which is not in everybody's PATH.
	[ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
	[ -x /usr/sbin/mkfs.ext4 ] || [ -x /sbin/mkfs.ext4 ] || missing+=(e2fsprogs) # disks that are filled and broken
	[ -x /usr/sbin/runuser ] || [ -x /sbin/runuser ] || missing+=(util-linux)    # PostgreSQL does not run as root
	[ ${#missing[@]} -gt 0 ] || return 0

	local root=()
	if [ "$(id -u)" -ne 0 ]; then
		if [ -z "$(command -v sudo || true)" ]; then
			echo "missing: ${missing[*]}. Install them, or run this as root or with sudo at hand" >&2
			return 1
		fi
		root=(sudo)
	fi
	if [ -z "$(command -v apt-get || true)" ]; then
		echo "missing: ${missing[*]}, and there is no apt-get here. Install what this system calls them" >&2
		return 1
	fi
	echo "=== installing ${missing[*]}"
	"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
	"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}
install_missing

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
raw=${KEEP_RAW:-$scratch/raw}
mkdir -p "$raw"
rm -f "$raw"/*.events.json "$raw"/*.suite.json
go -C tools build -o "$scratch/testsum" ./testsum

known=" "
for suite in "${suites[@]}"; do
	read -r name _ <<<"$suite"
	known+="$name "
done
for name in "$@"; do
	if [[ $known != *" $name "* ]]; then
		echo "there is no suite \"$name\"; there are:$known" >&2
		exit 1
	fi
done

total=(-raw "$raw")
if [ $# -eq 0 ]; then
	total+=(-must-run scripts/must-run.txt -features docs/features.md)
fi
if [ "${CI:-}" = true ]; then
	total+=(-no-skips)
fi

failed=0
for suite in "${suites[@]}"; do
	read -r name command <<<"$suite"
	if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
		continue
	fi
	"$scratch/testsum" suite -raw "$raw" "$name" bash -euo pipefail -c "$command" || failed=1
done
"$scratch/testsum" total "${total[@]}" || failed=1
exit $failed
