// object: pipe whose size was changed (F_SETPIPE_SZ), with more in it than a usual one holds
// status: captured
// note: up to 1 MiB
#include "object.h"
#include <fcntl.h>

int main(void) {
    int ends[2];
    static char block[1000], got[1000];
    CHECK(!pipe2(ends, O_NONBLOCK));
    CHECK_EQUAL(fcntl(ends[1], F_SETPIPE_SZ, 1 << 18), 1 << 18);
    unsigned in = 0, out = 0;
    ready();
    do {
        while (in - out < 200) {
            memset(block, in++, sizeof block);
            CHECK(write(ends[1], block, sizeof block) == sizeof block);
        }
        CHECK(read(ends[0], got, sizeof got) == sizeof got);
        CHECK(got[0] == (char)out && got[999] == (char)out);
        out++;
    } while (go_on());
    CHECK_EQUAL(fcntl(ends[0], F_GETPIPE_SZ), 1 << 18);
    for (; out < in; out++) CHECK(read(ends[0], got, sizeof got) == sizeof got && got[500] == (char)out);
    PASS();
}
