// object: pipe whose reader is gone
// status: captured
#include "object.h"

int main(void) {
    int ends[2];
    signal(SIGPIPE, SIG_IGN);
    CHECK(!pipe(ends) && !close(ends[0]));
    ready();
    do {
        CHECK(write(ends[1], "x", 1) < 0 && errno == EPIPE);
    } while (go_on());
    PASS();
}
