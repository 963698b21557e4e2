// object: named pipe that was removed, with content, and both sides open
// status: captured
// note: it goes on as a pipe without a name
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    CHECK(!mkfifo("/tmp/fifo", 0600));
    int reader = open("/tmp/fifo", O_RDONLY | O_NONBLOCK), writer = open("/tmp/fifo", O_WRONLY | O_NONBLOCK);
    CHECK(reader >= 0 && writer >= 0 && !unlink("/tmp/fifo"));
    ready();
    unsigned in = 0, out = 0, got;
    do {
        CHECK(write(writer, &in, 4) == 4);
        in++;
        if (in - out > 20) {
            CHECK(read(reader, &got, 4) == 4);
            CHECK_EQUAL(got, out++);
        }
    } while (go_on());
    close(writer);
    for (; out < in; out++) CHECK(read(reader, &got, 4) == 4 && got == out);
    for (int i = 0; i < 20000 && read(reader, &got, 4) < 0 && errno == EAGAIN; i++) usleep(100);
    CHECK(read(reader, &got, 4) == 0);
    PASS();
}
