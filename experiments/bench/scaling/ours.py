"""Our side of the scaling line: the one of the sft line."""

from side import sft_main

main = sft_main("ours")

if __name__ == "__main__":
    main()
