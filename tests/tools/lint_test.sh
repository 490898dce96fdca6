#!/usr/bin/env bash
# tools/lint.sh tidy, in a repository of its own: what changed is found whichever kind of file comes last in the list.
#   tests/tools/lint_test.sh LINT_SH
set -euo pipefail

lint=$(realpath "$1")
repository=$(mktemp -d)
trap 'rm -rf "$repository"' EXIT
cd "$repository"
commit() { git add -A && git -c user.name=test -c user.email=test@localhost commit -q -m "$1"; }

git init -q .
mkdir -p tools build src
cp "$lint" tools/lint.sh
echo '[]' >build/compile_commands.json
commit first
base=$(git rev-parse HEAD)

# The last file of the list is a header without a unit of its name.
echo '#pragma once' >src/zz.h
echo 'int a();' >src/aa.cpp
commit second
tools/lint.sh tidy "$base" | grep -qx 'tidy: nothing to check'
echo "lint: a header without a unit, last in the list: passed"
