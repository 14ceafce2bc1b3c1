# Runs when all packages are installed, with the root directory as $1 (mmdebstrap --customize-hook).
set -eu
cd "$1"

# The user of the guest: uid 1000, no password, sudo without one.
chroot . useradd --create-home --user-group --uid 1000 --shell /bin/bash --comment 'banger user' banger
chroot . usermod --shell /bin/bash root
echo 'banger ALL=(ALL:ALL) NOPASSWD: ALL' >etc/sudoers.d/banger
chmod 0440 etc/sudoers.d/banger
echo 'LANG=C.UTF-8' >etc/default/locale

# What the packages that were unpacked before dpkg knew of the exclusions have brought.
find usr/share/doc -mindepth 2 ! -type d ! -name copyright -delete
find usr/share/doc -mindepth 1 -type d -empty -delete
find usr/share/man usr/share/info usr/share/lintian -mindepth 1 -delete 2>/dev/null || :
find usr/share/locale -mindepth 1 ! -name locale.alias -delete 2>/dev/null || :

# What is of this host, of this build, or must be made anew in every guest.
rm -f etc/hostname etc/resolv.conf etc/ssh/ssh_host_* var/lib/dbus/machine-id etc/apt/preferences.d/banger-build \
  etc/dpkg/dpkg.cfg.d/banger-build var/lib/dpkg/*-old var/cache/debconf/*-old
echo localhost >etc/hostname
: >etc/machine-id
: >etc/resolv.conf # the agent writes it; a link would dangle
chmod 0644 etc/hostname etc/machine-id etc/resolv.conf
cat >etc/hosts <<'END'
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
END
find var/log -type f -delete
find var/cache/apt var/lib/apt/lists -mindepth 1 -type f -delete

# The guest's apt: what the image was built from, if the caller has chosen it.
if [ -n "${BANGER_SOURCES:-}" ]; then
  rm -f etc/apt/sources.list etc/apt/sources.list.d/*
  printf '%s\n' "$BANGER_SOURCES" >etc/apt/sources.list.d/debian.sources
  chmod 0644 etc/apt/sources.list.d/debian.sources
fi
printf '%s\n' "${BANGER_KEYS:-}" | while read -r key; do
  [ -z "$key" ] || install -D -m 0644 "$key" "etc/apt/keyrings/${key##*/}"
done
