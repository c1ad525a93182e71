"""onnxruntime-web (WebAssembly) under node: npm install --ignore-scripts onnxruntime-web, in --node-modules."""
