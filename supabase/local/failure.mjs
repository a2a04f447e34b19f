/** Something that a person can mend: printed as its one sentence, without a stack, and the program exits with 1. */
export class Failure extends Error {
  name = "Failure";
}
