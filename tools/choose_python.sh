# Read by tools/setup.sh and tools/setup_validation.sh: which Python of this machine an environment is made with.

# usable PYTHON OLDEST NEWEST: whether it is Python 3.OLDEST to 3.NEWEST and can make an environment with pip.
usable() {
    "$1" -c "import ensurepip, sys, venv; sys.exit(not (3, $2) <= sys.version_info[:2] <= (3, $3))" >/dev/null 2>&1
}

# choose_python OLDEST NEWEST CANDIDATE...: prints the first usable candidate; fails if there is none.
choose_python() {
    oldest=$1 newest=$2
    shift 2
    for python in "$@"; do
        if usable "$python" "$oldest" "$newest"; then
            echo "$python"
            return
        fi
    done
    return 1
}
