"""What is quantized: networks, layers, bit-widths, policies, quantizer arithmetic and export."""
