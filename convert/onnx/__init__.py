"""ONNX files: export and static int8 quantization."""
