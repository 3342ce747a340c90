"""Where preferences come from: people, judges and simulated annotators."""
