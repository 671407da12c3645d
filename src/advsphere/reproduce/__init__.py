"""The paper's tables by name: what they need, as a plan of jobs; the paper's numbers; and our rows beside them."""
