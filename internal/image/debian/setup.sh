# Runs before anything is unpacked, with the root directory as $1 (mmdebstrap --setup-hook).
set -eu
mkdir -p "$1/etc/dpkg/dpkg.cfg.d" "$1/etc/apt/preferences.d" "$1/usr"

# One /usr from the start: the usrmerge package would move the files afterwards, which takes seconds.
links='bin sbin lib'
if [ "$(dpkg --print-architecture)" = amd64 ]; then links="$links lib64"; fi
for dir in $links; do
  [ ! -e "$1/$dir" ] || continue
  mkdir -p "$1/usr/$dir"
  ln -s "usr/$dir" "$1/$dir"
done
cat >"$1/etc/apt/preferences.d/banger-build" <<'END'
Package: usrmerge
Pin: release *
Pin-Priority: -1
END

# The build is thrown away when it fails, so nothing needs to reach the disk in order.
echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/banger-build"
cat >"$1/etc/dpkg/dpkg.cfg.d/banger-image" <<'END'
# A sandbox has no use for documentation and translations. Remove this file to get those of what is installed later.
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/lintian/*
END
