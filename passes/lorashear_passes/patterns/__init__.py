"""What composed operators look like: each file finds the regions of a graph that are one of them.

By dataflow alone: operators, and which value goes where; never the name of a module or a parameter.
"""
