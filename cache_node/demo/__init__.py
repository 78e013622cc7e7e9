"""What `cache-node demo` needs beside the product: an origin that speaks Kratos' session API, or a real Kratos."""
