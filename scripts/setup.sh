#!/bin/sh
# Installs what banger needs on the host, and nothing else. Run again at any time: when all is there it only looks.
#
#   scripts/setup.sh          install what is missing (asks sudo for it only when not root)
#   scripts/setup.sh --check  only say what is missing; exit 1 if something is
set -eu

# One line a need: the command (or file) that proves it, then its package for apt, dnf, pacman, zypper.
needs='
qemu-system-x86_64  qemu-system-x86   qemu-system-x86-core  qemu-system-x86  qemu-x86
mmdebstrap          mmdebstrap        mmdebstrap            -                mmdebstrap
mkfs.ext4           e2fsprogs         e2fsprogs             e2fsprogs        e2fsprogs
depmod              kmod              kmod                  kmod             kmod
newuidmap           uidmap            shadow-utils          shadow           shadow
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring debian-keyring debian-archive-keyring -
'

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if command -v apt-get >/dev/null 2>&1; then manager=apt column=2
elif command -v dnf >/dev/null 2>&1; then manager=dnf column=3
elif command -v pacman >/dev/null 2>&1; then manager=pacman column=4
elif command -v zypper >/dev/null 2>&1; then manager=zypper column=5
else manager=none column=2
fi

missing= packages=
while read -r proof names; do
  [ -n "$proof" ] || continue
  case $proof in
    /*) [ -e "$proof" ] && continue ;;
    *) command -v "$proof" >/dev/null 2>&1 && continue ;;
  esac
  missing="$missing $proof"
  # shellcheck disable=SC2086
  set -- "$proof" $names
  shift $((column - 1))
  if [ "$1" != - ]; then packages="$packages $1"
  else echo "setup: no package of $manager has $proof; see docs/install.md" >&2
  fi
done <<EOT
$needs
EOT

[ -n "$missing" ] || exit 0
echo "setup: missing on this host:$missing" >&2
[ "${1:-}" != --check ] || exit 1
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
    # A first try with the lists at hand; only if that fails are they brought up to date.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1 || {
      $as_root apt-get update -qq
      $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    } ;;
  dnf) $as_root dnf install -y -q $packages ;;
  pacman) $as_root pacman -S --needed --noconfirm $packages ;;
  zypper) $as_root zypper --non-interactive install $packages ;;
  none) echo "setup: no known package manager; install by hand:$missing" >&2; exit 1 ;;
esac
