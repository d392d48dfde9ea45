#!/bin/sh
# The pages are tested in a real browser: install Chromium where it is missing and the packages are Debian's.
# Elsewhere the tests say what to do; GIMLI_CHROMIUM names another binary, GIMLI_NO_BROWSER=1 leaves them out.
command -v chromium >/dev/null || [ -n "$GIMLI_CHROMIUM" ] || [ "$GIMLI_NO_BROWSER" = 1 ] && exit 0
command -v apt-get >/dev/null || exit 0
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -q && $sudo apt-get install -yq --no-install-recommends chromium fonts-dejavu
