"""Is anything lost, repeated or stuck when searches are killed, files are damaged, and a worker is abused?

    PYTHONPATH=. python -m benchmarks.reliability kills --count 100      # searches, killed at random moments
    PYTHONPATH=. python -m benchmarks.reliability kills --count 20 --engine ray
    PYTHONPATH=. python -m benchmarks.reliability inputs --count 1000    # damaged files, through the command line
    PYTHONPATH=. python -m benchmarks.reliability requests --count 10000 # to a worker on 127.0.0.1
    PYTHONPATH=. python -m benchmarks.reliability flips                  # one byte of a shipped folder, then verify

Each part prints its counts and the machine, and exits with 1 if one of them is not what it should be. The seed decides
everything random; with `--log FILE` kills and inputs may be interrupted and go on.
"""
