"""python -m evit_nas."""

from evit_nas.cli import main

main()
