#!/bin/sh
# Installs the Debian packages that are missing. Usage: packages.sh run|test
# Without root it only says what is missing: the service then starts with what there is.
set -eu

case "${1:-run}" in
run)  wanted="python3.11-venv ca-certificates iproute2 nftables libbpf1 libbpf-dev linux-libc-dev clang" ;;
test) wanted="python3-bpfcc curl redis-server postgresql-15 tshark xdp-tools ipset iptables bpftool procps util-linux" ;;
*)    echo "packages.sh: run or test" >&2; exit 2 ;;
esac

missing=""
for package in $wanted; do
    state=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "packages.sh: this is not a Debian system; please install the equivalents of:$missing" >&2
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "packages.sh: not root, so these packages stay missing:$missing" >&2
    echo "             remedy: sudo apt-get install$missing" >&2
    exit 0
fi
echo "installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
# Servers are for the tests only, which start their own on free ports: nothing may start by itself.
policy=/usr/sbin/policy-rc.d
made_policy=""
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=yes
fi
trap '[ -z "$made_policy" ] || rm -f "$policy"' EXIT
apt-get -o DPkg::Lock::Timeout=300 update -qq
# shellcheck disable=SC2086
apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing >/dev/null
