"""The peer of the scaling line: TRL's SFTTrainer, as in the sft line."""

from side import sft_main

main = sft_main("peer")

if __name__ == "__main__":
    main()
