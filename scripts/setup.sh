#!/bin/sh
# Installs what banger needs on the host, and nothing else. Run again at any time: when all is there it only looks.
#
#   scripts/setup.sh          install what is missing (asks sudo for it only when not root)
#   scripts/setup.sh --check  only say what is missing; exit 1 if something is
#   scripts/setup.sh --test   install what `make test` uses besides
set -eu

mode=${1:-install}
case $mode in
  install | --check | --test) ;;
  *) echo "usage: scripts/setup.sh [--check | --test]" >&2; exit 2 ;;
esac

# One line a need: the command (or file) that proves it, then its package for apt, dnf, pacman, zypper.
needs='
qemu-system-x86_64  qemu-system-x86   qemu-system-x86-core  qemu-system-x86  qemu-x86
mmdebstrap          mmdebstrap        mmdebstrap            -                -
mkfs.ext4           e2fsprogs         e2fsprogs             e2fsprogs        e2fsprogs
depmod              kmod              kmod                  kmod             kmod
newuidmap           uidmap            shadow-utils          shadow           shadow
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring debian-keyring debian-archive-keyring -
'
[ "$mode" != --test ] || needs="$needs
curl                curl              curl                  curl             curl
ip                  iproute2          iproute               iproute2         iproute2
pgrep               procps            procps-ng             procps-ng        procps
umoci               umoci             umoci                 -                umoci
skopeo              skopeo            skopeo                skopeo           skopeo
busybox             busybox-static    busybox               busybox          busybox-static
buildah             buildah           buildah               buildah          buildah
docker-registry     docker-registry   -                     -                -
tcc                 tcc               tcc                   tcc              tcc
setcap              libcap2-bin       libcap                libcap           libcap-progs
zstd                zstd              zstd                  zstd             zstd
minisign            minisign          minisign              minisign         minisign
mkfs.xfs            xfsprogs          xfsprogs              xfsprogs         xfsprogs
"

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if command -v apt-get >/dev/null 2>&1; then manager=apt column=2
elif command -v dnf >/dev/null 2>&1; then manager=dnf column=3
elif command -v pacman >/dev/null 2>&1; then manager=pacman column=4
elif command -v zypper >/dev/null 2>&1; then manager=zypper column=5
else manager=none column=2
fi

# present PROOF: a path that exists, or a command in PATH
present() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

missing= packages= unpackaged=" "
while read -r proof names; do
  if [ -z "$proof" ] || present "$proof"; then continue; fi
  missing="$missing $proof"
  # shellcheck disable=SC2086
  set -- "$proof" $names
  shift $((column - 1))
  if [ "$1" != - ]; then packages="$packages $1"
  else
    unpackaged="$unpackaged$proof "
    echo "setup: no package of $manager has $proof; see docs/install.md" >&2
  fi
done <<EOT
$needs
EOT

[ -n "$missing" ] || exit 0
echo "setup: missing on this host:$missing" >&2
[ "$mode" != --check ] || exit 1
if [ "$manager" = none ]; then
  echo "setup: no known package manager; install by hand what Debian calls$packages" >&2
  exit 1
fi
[ -n "$packages" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "setup: not root and no sudo; as root install:$packages" >&2; exit 1; }
  as_root=sudo
fi
echo "setup: installing with $manager:$packages" >&2
# shellcheck disable=SC2086
case $manager in
  apt)
    # A first try with the lists at hand; only if that fails are they brought up to date. Another apt may be at work.
    install="$as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -o DPkg::Lock::Timeout=300 install
      -y -qq --no-install-recommends"
    $install $packages >/dev/null 2>&1 </dev/null || {
      # A list of somebody else's that cannot be brought up to date need not matter.
      $as_root apt-get -o DPkg::Lock::Timeout=300 update -qq </dev/null ||
        echo "setup: apt-get update has failed; trying with the package lists that are there" >&2
      $install $packages >/dev/null </dev/null
    } ;;
  dnf) $as_root dnf install -y -q $packages ;;
  pacman) $as_root pacman -S --needed --noconfirm $packages ;;
  zypper) $as_root zypper --non-interactive install $packages ;;
esac

# Debian's registry package starts a service on port 5000, which the tests neither need nor want to leave behind.
case $packages in *docker-registry*)
  if [ -d /run/systemd/system ]; then $as_root systemctl disable --now docker-registry.service >/dev/null 2>&1 || true; fi ;;
esac

# What could be installed must be there now.
hash -r
failed=
for proof in $missing; do
  case $unpackaged in *" $proof "*) continue ;; esac
  present "$proof" || failed="$failed $proof"
done
if [ -n "$failed" ]; then
  echo "setup: still missing after the installation:$failed; see docs/install.md" >&2
  exit 1
fi
echo "setup: done" >&2
