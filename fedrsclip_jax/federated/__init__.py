"""The federation: who is drawn, what a client does, how a round is one SPMD program, what the server keeps."""
