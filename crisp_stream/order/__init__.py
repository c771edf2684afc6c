"""The sample order: position in the training stream to window id. Pure functions of numpy.

In: windows per leaf, the proportions of each phase, a seed, a position.
Out: the window at that position; how often each leaf was drawn before it.
Begin with: order.py (`SampleOrder`), then draws.py. draw_table.py adds rows for selections of windows, which are bits
    (packed_bits.py). No file reads or writes anything.
Heavy libraries: none.
"""
