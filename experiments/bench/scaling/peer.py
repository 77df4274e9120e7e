"""The peer's side of the scaling line: TRL's SFTTrainer as in the sft line."""

from side import of

main = of("peer")

if __name__ == "__main__":
    main()
