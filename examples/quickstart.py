"""From a latency budget to an ONNX file, in a minute or two on two cores.

    python examples/quickstart.py

A small space and few trials, so that it is over soon: leave `space`, `trials` and `pool` out for a real search.
"""

import evit_nas


def main() -> None:
    result = evit_nas.search(budget="5ms", space="efficientvit-tiny", trials=24, pool=6, out="runs/quickstart")
    print(result.front[["latency_ms", "score", "params"]])

    best = result.best
    print(evit_nas.measure(best.arch, "m0", quick=True).frame[["network", "median_ms", "ratio"]])
    print("written:", evit_nas.export(best.arch, out="runs/quickstart/best.onnx"), "and", result.path / "report.html")


if __name__ == "__main__":  # the search starts worker processes, which import this file
    main()
