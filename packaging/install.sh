#!/bin/sh
# Installs the program qmerge of one release, for Linux and macOS:
#
#     sh qmerge-installer.sh [DIRECTORY]
#
# DIRECTORY is where the program goes, ~/.local/bin if it is not given. Nothing else is changed: no profile is edited and no root is needed. The
# archive is compared with the release's checksums before anything is unpacked. QMERGE_DOWNLOADS names another place to take the release from.
set -eu

version=@VERSION@
downloads=${QMERGE_DOWNLOADS:-@DOWNLOADS@}
directory=${1:-${HOME:?}/.local/bin}

fail() {
    echo "qmerge-installer: $*" >&2
    exit 1
}
has() {
    command -v "$1" > /dev/null 2>&1
}

case $(uname -s) in
    Linux) system=unknown-linux-musl ;;
    Darwin) system=apple-darwin ;;
    *) fail "there is no program for $(uname -s) here; in a checkout, cargo install --locked --path crates/qmerge-cli may build one" ;;
esac
case $(uname -m) in
    x86_64 | amd64) processor=x86_64 ;;
    aarch64 | arm64) processor=aarch64 ;;
    *) fail "there is no program for the processor $(uname -m); in a checkout, cargo install --locked --path crates/qmerge-cli builds one" ;;
esac
name=qmerge-$version-$processor-$system

# fetch FILE: into the working directory.
fetch() {
    if has curl; then
        curl --fail --silent --show-error --location --retry 3 --output "$1" "$downloads/$1"
    elif has wget; then
        wget --quiet --output-document="$1" "$downloads/$1"
    else
        fail "curl or wget is needed"
    fi || fail "cannot download $downloads/$1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch SHA256SUMS
fetch "$name.tar.gz"
grep "  $name.tar.gz\$" SHA256SUMS > expected || fail "the release has no checksum of $name.tar.gz"
if has sha256sum; then
    sha256sum -c expected > /dev/null || fail "$name.tar.gz is not what the release says it is; nothing was installed"
elif has shasum; then
    shasum -a 256 -c expected > /dev/null || fail "$name.tar.gz is not what the release says it is; nothing was installed"
else
    fail "sha256sum or shasum is needed to check the download"
fi
tar -xzf "$name.tar.gz"

cd - > /dev/null
mkdir -p "$directory"
# Beside the old program first: one that is running cannot be written over.
cp "$work/$name/qmerge" "$directory/.qmerge.new"
chmod 755 "$directory/.qmerge.new"
mv -f "$directory/.qmerge.new" "$directory/qmerge"
echo "$directory/qmerge is version $version"
case :$PATH: in
    *":$directory:"*) ;;
    *) echo "add $directory to PATH to run it by its name" ;;
esac
