"""The other servers, each as its own documentation has it: they share how a PNG becomes an answer, and nothing else.

They run in environments of their own, where of Stride's packages only numpy, Pillow and onnxruntime are installed.
"""
