"""Our side of the scaling line: that of the sft line."""

from side import of

main = of("ours")

if __name__ == "__main__":
    main()
