# tests/MODULE/*_test.cpp become one program test_MODULE, its cases found by CTest when it runs.
find_package(GTest REQUIRED)
include(GoogleTest)

# Stands in for the driver's management library, which is looked for at run time.
add_library(fake_nvml MODULE ${CMAKE_SOURCE_DIR}/tests/support/fake_nvml.cpp)

foreach(module core formats inputs kernels ops models engine quant bench report cli)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${module}/*.cpp)
  if(NOT sources)
    continue()
  endif()
  add_executable(test_${module} ${sources})
  target_include_directories(test_${module} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  set_target_properties(test_${module} PROPERTIES ENABLE_EXPORTS ON)
  # Registered objects (kernels, families) are named so that the linker keeps them, transitively as for `nibble` itself.
  target_link_libraries(test_${module} PRIVATE nibble_flags nibble_${module} GTest::gtest GTest::gtest_main)
  foreach(registered kernels ops models cli)
    get_target_property(has nibble_${module} LINK_LIBRARIES)
    if(NOT registered STREQUAL module AND TARGET nibble_${registered})
      if(module MATCHES "^(models|engine|quant|bench|cli)$" AND NOT (registered STREQUAL "cli"))
        target_link_libraries(test_${module} PRIVATE nibble_${registered})
      endif()
    endif()
  endforeach()
  # Attention without a cache multiplies as linear kernels do.
  if(module STREQUAL "ops")
    target_link_libraries(test_${module} PRIVATE nibble_kernels)
  endif()
  if(module STREQUAL "cli")
    target_link_libraries(test_${module} PRIVATE nibble_bench nibble_report CLI11::CLI11)
    # Some tests run the program itself.
    add_dependencies(test_${module} nibble)
    target_compile_definitions(test_${module} PRIVATE NIBBLE_PROGRAM="$<TARGET_FILE:nibble>")
  endif()
  if(module STREQUAL "bench")
    add_dependencies(test_${module} fake_nvml)
    target_compile_definitions(test_${module} PRIVATE NIBBLE_FAKE_NVML="$<TARGET_FILE:fake_nvml>")
  endif()
  target_compile_definitions(test_${module} PRIVATE NIBBLE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data")
  gtest_discover_tests(test_${module} DISCOVERY_MODE PRE_TEST PROPERTIES LABELS ${module})
endforeach()

# The public API, as a program that links the shared library alone.
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/api/*.cpp)
add_executable(test_api ${sources})
target_include_directories(test_api PRIVATE ${CMAKE_SOURCE_DIR}/tests)
target_link_libraries(test_api PRIVATE nibble_flags nibble::nibble GTest::gtest GTest::gtest_main)
target_compile_definitions(test_api PRIVATE NIBBLE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data")
gtest_discover_tests(test_api DISCOVERY_MODE PRE_TEST PROPERTIES LABELS api)

# What needs a GPU, label "gpu": skipped, with the reason, where there is none.
if(NIBBLE_WITH_CUDA)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cuda/*.cpp)
  add_executable(test_cuda ${sources})
  set_target_properties(test_cuda PROPERTIES ENABLE_EXPORTS ON RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  target_include_directories(test_cuda PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(test_cuda PRIVATE
    nibble_flags nibble_bench nibble_models nibble_kernels nibble_ops GTest::gtest GTest::gtest_main)
  add_dependencies(test_cuda nibble_cuda)
  target_compile_definitions(test_cuda PRIVATE
    NIBBLE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data" NIBBLE_CUDA_LIBRARY_FILE="$<TARGET_FILE:nibble_cuda>")
  gtest_discover_tests(test_cuda DISCOVERY_MODE PRE_TEST PROPERTIES LABELS gpu)
endif()

# The scripts' own tests: tests/tools/NAME_test.sh beside tools/NAME.sh.
foreach(script lint)
  add_test(NAME tools.${script}
    COMMAND ${CMAKE_SOURCE_DIR}/tests/tools/${script}_test.sh ${CMAKE_SOURCE_DIR}/tools/${script}.sh)
  set_tests_properties(tools.${script} PROPERTIES LABELS tools)
endforeach()
