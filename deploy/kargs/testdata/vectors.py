#!/usr/bin/env python3
"""Writes vectors.tsv: what libostree makes of edits of kernel arguments.

Columns: options, edit, operand, and the options after it or "!" if libostree refuses. Made with libostree 2022.7:
    python3 vectors.py > vectors.tsv
"""
import ctypes

lib = ctypes.CDLL("libostree-1.so.1")
lib.ostree_kernel_args_from_string.restype = ctypes.c_void_p
lib.ostree_kernel_args_from_string.argtypes = [ctypes.c_char_p]
lib.ostree_kernel_args_to_string.restype = ctypes.c_char_p
lib.ostree_kernel_args_to_string.argtypes = [ctypes.c_void_p]
lib.ostree_kernel_args_append.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
for name in ("new_replace", "delete"):
    getattr(lib, "ostree_kernel_args_" + name).argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

OPTIONS = ["a=1", "a", "a=", "a=1 a=2", "a=1 b=2 a=3", "a a=1", "a= a=1", "a a", "a=1 a=1", "a=1=2", "a=1 a= a", "x y=1 rw"]
EDITS = {
    "append": ["a=9", "a", "a=", "b=2"],
    "new_replace": ["a", "a=", "a=9", "a=1=9", "a=1=", "a==9", "a=2=9", "a=1=2=9", "b=2", "y=1=root=x"],
    "delete": ["a", "a=", "a=1", "a=3", "a=1=2", "b", "rw"],
}
for options in OPTIONS:
    for edit, operands in EDITS.items():
        for operand in operands:
            args = lib.ostree_kernel_args_from_string(options.encode())
            f = getattr(lib, "ostree_kernel_args_" + edit)
            ok = f(args, operand.encode()) if edit == "append" else f(args, operand.encode(), None)
            result = lib.ostree_kernel_args_to_string(args).decode() if ok or edit == "append" else "!"
            print(options, edit, operand, result, sep="\t")
